# Says why only a reboot brings the driver into use.
# Argument: VERSION
loaded=$(cat /sys/module/nvidia/version 2>/dev/null)
[ ! -d /sys/module/nouveau ] || echo "nouveau has the GPUs"
[ -z "$loaded" ] || [ "$loaded" = "$1" ] || echo "the module nvidia $loaded is loaded, and $1 is installed"
