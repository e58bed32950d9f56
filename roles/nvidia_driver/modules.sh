# Says what is wrong with the kernel modules on the disk: for the running kernel, and for the one that boots next.
# The module's own version counts: a package manager ends with 0 although DKMS could not build it.
# Argument: VERSION
running=$(uname -r)
next=$({ grubby --default-kernel 2>/dev/null || ls -1 /boot/vmlinuz-* 2>/dev/null; } | sed 's,.*/vmlinuz-,,' | sort -V | tail -n 1)
for kernel in $(printf '%s\n' "$running" "${next:-$running}" | sort -u); do
    # Debian's own packages call it nvidia-current on the disk, and nvidia once it is loaded.
    found=$(modinfo -k "$kernel" -F version nvidia 2>/dev/null || modinfo -k "$kernel" -F version nvidia-current 2>/dev/null)
    [ "$found" = "$1" ] || echo "the module nvidia for kernel $kernel is ${found:-not there}, and should be $1"
done
