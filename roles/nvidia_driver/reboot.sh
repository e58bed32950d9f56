# Says why only a reboot brings the driver into use.
# Arguments: VERSION, and NAME=VALUE for each option of the module that is wanted
wanted=$1
shift
loaded=$(cat /sys/module/nvidia/version 2>/dev/null)
[ ! -d /sys/module/nouveau ] || echo "nouveau has the GPUs"
[ -z "$loaded" ] || [ "$loaded" = "$wanted" ] || echo "the module nvidia $loaded is loaded, and $wanted is installed"
# 0x02 is 2; a text stays as it is.
plain() { number=$(printf %d "$1" 2>/dev/null) && echo "$number" || echo "$1"; }
# /proc/driver/nvidia/params has the options without their prefix, numbers in decimal, and texts in quotation marks.
for option in "$@"; do
    name=${option%%=*}
    name=${name#NVreg_}
    case $name in
    # nv-reg.h, NV_REG_RM_PROFILING_ADMIN_ONLY: it has another name there.
    RestrictProfilingToAdminUsers) shown=RmProfilingAdminOnly ;;
    *) shown=$name ;;
    esac
    has=$(sed -n "s/^$shown: \(.*\)/\1/p" /proc/driver/nvidia/params 2>/dev/null | tr -d '"')
    [ -z "$has" ] || [ "$(plain "$has")" = "$(plain "${option#*=}")" ] ||
        echo "the module's option $name is $has, and should be ${option#*=}"
done
