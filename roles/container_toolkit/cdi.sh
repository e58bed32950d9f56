# Says what is wrong with the CDI devices. `nvidia-ctk cdi list` ends with 0 although it found none.
# Argument: DRIVER
key=container_toolkit_engine
[ "$(nvidia-ctk cdi list 2>/dev/null | grep -cx 'nvidia.com/gpu=all')" = 1 ] ||
    echo "$key: containers see no GPU, or each twice; see nvidia-ctk cdi list and journalctl -u nvidia-cdi-refresh"
grep -qsF "$1" /var/run/cdi/nvidia.yaml ||
    echo "$key: /var/run/cdi/nvidia.yaml is not of the driver $1; systemctl restart nvidia-cdi-refresh"
slices=$(nvidia-smi -L 2>/dev/null | grep -c 'UUID: MIG-')
[ "$(nvidia-ctk cdi list 2>/dev/null | grep -c '^nvidia.com/gpu=[0-9]*:')" = "$slices" ] ||
    echo "$key: containers do not see the $slices MIG slices that there are; systemctl restart nvidia-cdi-refresh"
for stale in /etc/cdi/nvidia.yaml /usr/share/containers/oci/hooks.d/oci-nvidia-hook.json; do
    [ ! -e "$stale" ] || echo "$key: $stale is left from an older set-up; remove it"
done
