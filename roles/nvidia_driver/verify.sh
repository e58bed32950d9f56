# Says what is amiss with the driver as programs see it. nvidia-smi alone says too little: it is content on a board
# whose fabric is down, where every CUDA program fails.
# Arguments: VERSION GPUS FABRIC STATE. FABRIC and STATE are empty where there are no switches, or where the driver
# does not tell their state; CUDA tells it then.
version=$1 gpus=$2 fabric=$3 state=$4
amiss() { echo "nvidia_driver_version: $1; $2"; }

loaded=$(cat /sys/module/nvidia/version 2>/dev/null)
[ "$loaded" = "$version" ] ||
    amiss "the module nvidia ${loaded:-is not} loaded, and should be $version" "journalctl -k says why; dmesg too"
for library in libcuda.so libnvidia-ml.so; do
    # The file behind the link bears the version: libcuda.so.580.95.05.
    path=$(ldconfig -p | sed -n "s,.* => \(/.*/$library\.1\)$,\1,p" | head -n 1)
    file=$(readlink -f "${path:-/nonexistent}")
    [ "${file##*/"$library".}" = "$version" ] ||
        amiss "$library is ${file##*/}, and should be $version" "remove the copy that no package of the set brought"
done
if [ -n "$fabric" ]; then
    manager=$(nv-fabricmanager --version 2>&1 | sed -n 's/.*version is *: *\([0-9.]*\).*/\1/p')
    [ "$manager" = "$version" ] ||
        amiss "the fabric manager is ${manager:-not there}, and should be $version" "run again"
fi
if [ -n "$state" ]; then
    # The fabric takes a while after the start of its manager.
    for second in $(seq 120); do
        states=$(nvidia-smi --query-gpu=fabric.state,fabric.status --format=csv,noheader 2>&1)
        case $states in *'In Progress'*) sleep 1 ;; *) break ;; esac
    done
    [ "$(echo "$states" | sort -u)" = 'Completed, Success' ] ||
        amiss "the fabric is not up: $(echo "$states" | sort -u | paste -s -d '|')" \
            "see journalctl -u nvidia-fabricmanager"
fi
# What a CUDA program does first. cuda.h: 100 no device, 802 fabric not up, 803 module and library differ.
# Where GPUs are cut by MIG, a program sees one slice of them all. MIG User Guide, CUDA Device Enumeration.
# Where all are in MIG mode and none has a slice, as after a boot that lost the layout, it sees no device at all: the
# role mig, which comes next, makes the slices again.
modes=$(nvidia-smi --query-gpu=mig.mode.current --format=csv,noheader 2>/dev/null | sort -u)
case $modes in *Enabled*) gpus=1 ;; esac
[ "$modes" != Enabled ] || nvidia-smi -L | grep -q 'UUID: MIG-' || gpus=0
python3 - "$gpus" <<'P' || amiss "CUDA could not be asked" "see that python3 and libcuda.so.1 are there"
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
count = ctypes.c_int()
error = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
wanted = int(sys.argv[1])
if error and (error, wanted) != (100, 0):
    print(f"nvidia_driver_version: CUDA does not start: error {error}; see journalctl -k")
elif count.value < wanted:
    print(f"nvidia_driver_gpus: CUDA sees {count.value} GPUs, and should see {wanted}; see nvidia-smi and journalctl -k")
P
