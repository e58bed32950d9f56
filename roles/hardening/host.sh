# What belongs to the distribution and is changed in place. Arguments: ask|mend COMPILERS_GROUP PASSWORD_DAYS TMP_OPTIONS
# TMP_LATER
# `ask` prints a line for each thing that is amiss and changes nothing; `mend` mends these.
mode=$1 compilers=$2 password_days=$3 tmp_options=$4 tmp_later=$5

# What fails within a loop behind a pipe is said, and does not end the run: a kernel may refuse one of its keys for good.
failed=
item() { # NAME TEST MEND
    eval "$2" && return
    if [ "$mode" = ask ]; then
        echo "$1"
    elif ! eval "$3"; then
        echo "quench: $1: is not as it should be, and could not be made so" >&2
        failed=1
    fi
}
setting() { # FILE KEY VALUE, as in login.defs(5)
    item "$1: $2" "grep -Eqs '^$2[[:space:]]+$3\$' $1" \
        "sed -i '/^[#[:space:]]*$2[[:space:]]/d' $1 && echo '$2 $3' >>$1"
}
line() { # FILE LINE
    item "$1: $2" "grep -qsxF '$2' $1" "echo '$2' >>$1"
}

has_all() { # OPTIONS, all of which mount(8) has to know of $point
    for option in $(echo "$options" | tr , ' '); do
        case ,$1, in *,"$option",*) ;; *) return 1 ;; esac
    done
}
in_fstab() { awk -v point="$point" '$1 !~ /^#/ && $2 == point { print $4 }' /etc/fstab 2>/dev/null; }
fstab_options() { # those that are missing, and no other word of the file
    new=$(awk -v point="$point" -v options="$options" '
        $1 !~ /^#/ && $2 == point {
            count = split(options, wanted, ",")
            for (i = 1; i <= count; i++) if (index("," $4 ",", "," wanted[i] ",") == 0) $4 = $4 "," wanted[i]
        }
        { print }' /etc/fstab) && cp -p /etc/fstab /etc/fstab.new && printf '%s\n' "$new" >/etc/fstab.new &&
        mv -fT /etc/fstab.new /etc/fstab
}
fstab_line() { # after a last line that may have no end
    # As long as this is there, tmp.mount does not start: until the next boot.
    [ "$point" != /tmp ] || [ -n "$now" ] || : >"$tmp_later"
    { [ -z "$(tail -c 1 /etc/fstab 2>/dev/null)" ] || echo; echo "$type $point $type $options 0 0"; } >>/etc/fstab
}
relaxed() { # our line, in which noexec stands no longer
    sed -i "\\|^$strict\$|d" /etc/fstab
    fstab_line
    [ -z "$now" ] || mount -o "remount,$options,exec" "$point"
}
mounted() { # POINT OPTIONS [TYPE]: a file system of its own there has these; with TYPE there is to be one
    point=$1 options=$2 type=${3:-}
    have=$(in_fstab) strict="$type $point $type nosuid,nodev,noexec 0 0"
    [ -n "$have$type" ] || return 0
    now=$(findmnt --noheadings --output OPTIONS --mountpoint "$point" 2>/dev/null | tail -n 1)
    if [ -n "$have" ]; then
        item "/etc/fstab: $point" 'has_all "$have"' fstab_options
        [ "$options" != nosuid,nodev ] || item "/etc/fstab: $point" '! grep -qxF "$strict" /etc/fstab' relaxed
    elif [ -n "$type" ]; then
        item "/etc/fstab: $point" false fstab_line
    fi
    [ -z "$now" ] || item "$point: $options" 'has_all "$now"' 'mount -o "remount,$options" "$point"'
}

setting /etc/login.defs PASS_MAX_DAYS "$password_days"
setting /etc/login.defs PASS_MIN_DAYS 1
setting /etc/login.defs PASS_WARN_AGE 7
setting /etc/login.defs UMASK 027
setting /etc/login.defs HOME_MODE 0750
setting /etc/login.defs ENCRYPT_METHOD YESCRYPT
setting /etc/login.defs SHA_CRYPT_MIN_ROUNDS 65536
setting /etc/login.defs SHA_CRYPT_MAX_ROUNDS 65536
item 'useradd: INACTIVE' "useradd -D | grep -qx INACTIVE=30" "useradd -D -f 30"
line /etc/profile 'umask 027'
line /etc/bash.bashrc 'umask 027'

# su is for nobody: sudo says who it was. [CIS 5.2.7]
item 'group sugroup' 'getent group sugroup >/dev/null' 'groupadd --system sugroup'
line /etc/pam.d/su 'auth required pam_wheel.so use_uid group=sugroup'

# pam-auth-update(8) reads the profiles only when it is called. Where somebody has changed its part of a file by hand, it
# changes nothing, says so, and ends with 0.
profiles='quench-faillock quench-faillock-notify quench-pwhistory'
hash=$(cd /usr/share/pam-configs && cat $profiles | sha256sum)
stamp=/var/lib/quench/converged/pam
item 'PAM' '[ "$(cat $stamp 2>/dev/null)" = "$hash" ] && grep -qs pam_faillock.so /etc/pam.d/common-auth' \
    'DEBIAN_FRONTEND=noninteractive pam-auth-update --enable $profiles pwquality &&
        grep -qs pam_faillock.so /etc/pam.d/common-auth && echo "$hash" >$stamp'

# Programs come from packages, and not from where everybody writes. What is no file system of its own stays as it is, but
# for /tmp and /dev/shm. Engines load what they compile from a folder of theirs: TMPDIR in their environment. [CIS 1.1.2]
mounted /tmp "$tmp_options" tmpfs
mounted /dev/shm nosuid,nodev,noexec tmpfs
mounted /home nosuid,nodev
mounted /var nosuid,nodev
mounted /var/tmp nosuid,nodev,noexec
mounted /var/log nosuid,nodev,noexec
mounted /var/log/audit nosuid,nodev,noexec

# What the role acme had, on a host whose certificate comes as a file again. By now its service has read that.
item 'acme' '[ ! -d /var/lib/quench-acme ] || [ -e /etc/systemd/system/acme-renew.service ]' 'rm -rf /var/lib/quench-acme'

# systemd-journald.service(8): a new journald writes to memory until it is told that the disk is there.
item 'journal' '[ -z "$(ls -d /run/log/journal/*/system.journal 2>/dev/null)" ]' 'journalctl --flush'

# A certificate that this run has brought is seen by monitoring now, and not tomorrow.
item 'certificates' \
    '! systemctl is-failed --quiet certificate-expiry.service || ! /usr/local/lib/quench/certificate-expiry >/dev/null' \
    'systemctl start certificate-expiry.service'

# Whoever logs in is a person, whatever the number: with a key, or as one who may use sudo. A certificate for sshd leaves no
# trace on the host.
logs_in() {
    [ "$user" = "${SUDO_USER:-}" ] || [ -s "$home/.ssh/authorized_keys" ] ||
        id -nG "$user" | tr ' ' '\n' | grep -qxE 'sudo|wheel'
}
# Accounts of services have no shell, and what people's shells read is theirs alone. Not those of a directory, which are
# somebody else's. [CIS 5.4.2, 7.2]
getent -s files passwd | while IFS=: read -r user _ uid _ _ home shell; do
    if [ "$uid" -lt 1000 ] && [ "$user" != root ]; then
        case $shell in
        */nologin | */false | */sync) ;;
        *) logs_in || item "$user: shell" false "usermod --shell /usr/sbin/nologin $user" ;;
        esac
    elif [ "$uid" -ge 1000 ] && [ "$uid" -lt 60000 ]; then
        for file in "$home"/.[!.]*; do
            [ -f "$file" ] && [ ! -L "$file" ] || continue
            item "$file: mode" "[ -z \"\$(find '$file' -perm /0137)\" ]" "chmod u-x,g-wx,o-rwx '$file'"
        done
    fi
done

# Triton and Inductor compile at run time, DKMS as root: compilers are for these alone. [lynis HRDN-7222]
if getent group "$compilers" >/dev/null; then
    for name in as cc gcc g++ c++ ld; do
        file=$(readlink -f "/usr/bin/$name") || continue
        [ -f "$file" ] || continue
        item "$file: mode" "[ \"\$(stat -c '%a %G' $file)\" = '750 $compilers' ]" \
            "dpkg-statoverride --quiet --force-statoverride-add --update --add root $compilers 0750 $file"
    done
fi

# Keys of the whole kernel are the machine's, and not a container's.
if systemd-detect-virt --quiet --container; then keys='net\.ipv[46]\.'; else keys='[a-z]'; fi
sed -n "s/^\($keys.*\) = \(.*\)\$/\1 \2/p" /etc/sysctl.d/99-zz-quench.conf | while read -r key value; do
    file=/proc/sys/$(echo "$key" | tr . /)
    item "$key" "[ ! -e $file ] || [ \"\$(cat $file)\" = '$value' ]" "sysctl --quiet --write '$key=$value'"
done
[ -z "$failed" ]
