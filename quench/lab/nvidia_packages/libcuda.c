/* SIMULATED: the driver library as far as a check needs it. It looks at the host as the real one does. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int first_word(const char *path, char *word) {
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    int found = fscanf(file, "%63s", word) == 1;
    fclose(file);
    return found;
}

static int opens(const char *path) {
    int fd = open(path, O_RDWR);
    if (fd >= 0) close(fd);
    return fd >= 0;
}

static int gpus(void) {
    char path[32];
    int count = 0;
    while (snprintf(path, sizeof path, "/dev/nvidia%d", count), access(path, F_OK) == 0) count++;
    return count;
}

int cuInit(unsigned int flags) {
    char word[64] = "";
    (void)flags;
    if (!first_word("/sys/module/nvidia/version", word)) return 100; /* CUDA_ERROR_NO_DEVICE */
    if (strcmp(word, "@VERSION@") != 0) return 803;                 /* CUDA_ERROR_SYSTEM_DRIVER_MISMATCH */
    if (!opens("/dev/nvidiactl") || !opens("/dev/nvidia-uvm")) return 999; /* CUDA_ERROR_UNKNOWN */
    if (gpus() == 0) return 100;
    first_word("/usr/lib/quench-lab/fabric", word);
    if (strcmp(word, "none") != 0 && access("/run/quench-lab/fabric-completed", F_OK) != 0)
        return 802; /* CUDA_ERROR_SYSTEM_NOT_READY */
    return 0;
}

int cuDriverGetVersion(int *version) {
    *version = @CUDA@;
    return 0;
}

int cuDeviceGetCount(int *count) {
    int error = cuInit(0);
    *count = error ? 0 : gpus();
    return error ? 3 : 0; /* CUDA_ERROR_NOT_INITIALIZED */
}
