#!/bin/bash
# SIMULATED: finds out what kind of board it is, and starts what that needs.
mode=start config=/usr/share/nvidia/nvswitch/fabricmanager.cfg
while [ $# -gt 0 ]; do
    case $1 in
        --mode | -m) mode=$2; shift ;;
        --fm-config-file) config=$2; shift ;;
        --help | -h) echo "SIMULATED nvidia-fabricmanager-start.sh: --mode precheck|start"; exit ;;
    esac
    shift
done
case $(cat /usr/lib/quench-lab/fabric 2>/dev/null) in
    nvswitch) [ "$mode" = precheck ] || echo "Detected Pre-NVL5 system" ;;
    nvlink5)
        [ "$mode" = precheck ] || echo "Detected NVL5+ system"
        command -v ibstat >/dev/null || { echo "ibstat: command not found" >&2; exit 1; }
        for module in ib_umad mlx5_ib; do
            [ -e /sys/module/$module ] || { echo "Failed to open any management interface: $module is not loaded" >&2; exit 1; }
        done
        [ -x /opt/nvidia/nvlsm/sbin/nvlsm ] || { echo "nvlsm is not installed" >&2; exit 1; } ;;
    *) echo "No NVSwitch on this system" >&2; exit 1 ;;
esac
[ "$mode" = precheck ] && exit 0
/usr/bin/nv-fabricmanager -c "$config" &
manager=$!
for _ in $(seq 50); do
    [ -e /run/quench-lab/fabric-completed ] && exit 0
    kill -0 $manager 2>/dev/null || { wait $manager; exit 1; }
    sleep 0.1
done
exit 1
