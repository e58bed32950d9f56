/* SIMULATED: the management library; its file's name carries the version that nvidia-smi compares. */
#include <string.h>

int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    strncpy(version, "@VERSION@", length);
    return 0;
}
