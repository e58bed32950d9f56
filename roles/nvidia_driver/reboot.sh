# Says why only a reboot brings the driver into use.
# Arguments: VERSION, and NAME=VALUE for each option of the module that is wanted
wanted=$1
shift
loaded=$(cat /sys/module/nvidia/version 2>/dev/null)
[ ! -d /sys/module/nouveau ] || echo "nouveau has the GPUs"
[ -z "$loaded" ] || [ "$loaded" = "$wanted" ] || echo "the module nvidia $loaded is loaded, and $wanted is installed"
# /proc/driver/nvidia/params has the options without their prefix, and texts in quotation marks.
for option in "$@"; do
    name=${option%%=*}
    name=${name#NVreg_}
    has=$(sed -n "s/^$name: \(.*\)/\1/p" /proc/driver/nvidia/params 2>/dev/null | tr -d '"')
    [ -z "$has" ] || [ "$has" = "${option#*=}" ] || echo "the module's option $name is $has, and should be ${option#*=}"
done
