# What the host says of its GPUs before anything is changed: a word and its values on each line.
set -u
read_file() { cat "$1" 2>/dev/null; }

for device in /sys/bus/pci/devices/*; do
    [ "$(read_file "$device/vendor")" = 0x10de ] || continue
    echo "pci ${device##*/} $(read_file "$device/class") $(read_file "$device/device")"
done
echo "loaded $(read_file /sys/module/nvidia/version)"
[ ! -d /sys/module/nouveau ] || echo nouveau
# NVIDIA's own installer brings files that no package manager knows of.
[ ! -e /usr/bin/nvidia-uninstall ] || echo runfile

# efivarfs: four bytes of attributes, then the value.
variable=/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c
if [ "$(tail -c 1 "$variable" 2>/dev/null | od -An -tu1 | tr -d ' ')" = 1 ]; then
    known=
    for key in /var/lib/shim-signed/mok/MOK.der /var/lib/dkms/mok.pub; do
        [ ! -e "$key" ] || ! mokutil --test-key "$key" 2>/dev/null | grep -q 'already enrolled' || known=$key
    done
    [ -n "$known" ] || echo secure-boot
fi

# Other sources of the same packages. apt may be told to read none of these folders. Each section of a .repo and each
# stanza of a .sources is on or off by itself; in a .list each line is one. dnf.conf(5), sources.list(5)
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources /etc/yum.repos.d/*.repo; do
    case $file in */quench-*) continue ;; esac
    awk -v kind="${file##*.}" '
        function judge() { if (named && !off) found = 1; named = off = 0 }
        (kind == "repo" && /^\[/) || (kind == "sources" && /^[ \t]*$/) || kind == "list" { judge() }
        /^[^#]*(download\.nvidia\.com|nvidia\.github\.io|graphics-drivers|negativo17|nonfree-nvidia)/ { named = 1 }
        /^[^#]*file:\/+var\/nvidia-driver-local-repo-/ { named = 1 }
        tolower($0) ~ /^enabled[ \t]*[=:][ \t]*(0|no|false|off)[ \t]*$/ { off = 1 }
        END { judge(); exit !found }' "$file" 2>/dev/null && echo "foreign $file"
done
{
    dpkg-query -W -f '${db:Status-Abbrev}|${Package}\n' '*nvidia*' 2>/dev/null | sed -n 's/^[ih]i |//p'
    rpm -qa --qf '%{NAME}\n' '*nvidia*' 2>/dev/null
} | grep -E '^(linux-(modules|objects|signatures)-nvidia|nvidia-headless|akmod-nvidia|nvidia-legacy)|-server(-open)?$' |
    sed 's/^/package /'

for folder in /usr /var/lib /var/cache/apt/archives /var/cache/dnf /boot; do
    [ ! -d "$folder" ] || echo "space $folder $(df --output=avail -k "$folder" | tail -n 1)"
done
