# Put changed files into their places, or leave the host as it is.
#
# Standard input: base64 of a tar archive with
#   tree/...  the changed files under their absolute paths
#   meta      a line for each change: KIND MODE OWNER GROUP PATH, KIND one of dir, file, gone
#   checks    a line for each command that must accept the new tree
#   stamps    a line for each stamp that is no longer true
#   manifest  all files of the role, as they shall be: SHA256 MODE OWNER GROUP PATH
#   partial   is there if these are some of the role's files, and the others stay
#   guarded   units that go back with the files; with it:
#   beside    files of the distribution that the role changes after this, and that go back as well
#   rollback  the script that brings the former files back
# Arguments: ROLE STATE_DIRECTORY NEW_SUFFIX GUARD_SECONDS
# GUARD_SECONDS: a while after which the former files come back, unless the timer is stopped before. Empty: never.
set -eu
umask 077
role=$1 state=$2 suffix=$3 guard_seconds=$4

# /run is in memory: a secret on its way is never written to a disk.
# What a run that was killed left there goes first: this one holds the lock.
rm -rf /run/quench.??????
stage=$(mktemp -d /run/quench.XXXXXX)
trap 'rm -rf "$stage"' EXIT
trap 'exit 1' HUP INT TERM PIPE
base64 -d | tar -xzf - -C "$stage" --no-same-owner

# Read here and not by the controller: a run that worked on the same role meanwhile has come to its end.
if [ -e "$stage/partial" ] && [ -e "$state/manifest/$role" ]; then
    cut -d' ' -f5- "$stage/manifest" >"$stage/partial"
    while read -r sha256 mode owner group path; do
        grep -qxF -e "$path" "$stage/partial" || echo "$sha256 $mode $owner $group $path"
    done <"$state/manifest/$role" >>"$stage/manifest"
    LC_ALL=C sort -k 5 -o "$stage/manifest" "$stage/manifest"
fi

# The folders on the way to a staged file get the attributes that they have on the host.
(cd "$stage/tree" && find . -mindepth 1 -type d) | while IFS= read -r path; do
    if [ -d "/$path" ]; then
        chmod --reference="/$path" "$stage/tree/$path"
        chown --reference="/$path" "$stage/tree/$path"
    else
        chmod 755 "$stage/tree/$path"
    fi
done
while read -r kind mode owner group path; do
    if [ "$kind" = gone ]; then
        mknod "$stage/tree$path" c 0 0 # overlayfs(5): hides the file below
    else
        chown "$owner:$group" "$stage/tree$path"
        chmod "$mode" "$stage/tree$path"
    fi
done <"$stage/meta"

# The checks see the new files at their real paths: an overlay in a mount namespace of its own. What a check
# writes goes with it.
if [ -s "$stage/checks" ]; then
    STAGE=$stage unshare --mount --propagation private sh -eu -c '
        for top in "$STAGE"/tree/*; do
            real=/${top##*/}
            mkdir -p "$STAGE/upper$real" "$STAGE/work$real"
            chmod --reference="$real" "$STAGE/upper$real"
            mount -t overlay overlay -o "lowerdir=$top:$real,upperdir=$STAGE/upper$real,workdir=$STAGE/work$real" "$real"
        done
        while IFS= read -r check; do
            if ! sh -c "$check" </dev/null; then
                echo "quench: this check refused the new files, and the old ones stay: $check" >&2
                exit 1
            fi
        done <"$STAGE/checks"
    '
fi

# What may cut the controller off is undone by the host itself. A boot in between starts the timer again.
if [ -n "$guard_seconds" ]; then
    guard=$state/guard/$role timer=quench-rollback-$role.timer
    # A run that was killed while it copied has changed nothing yet, and its last copy may be cut off.
    [ -e "$guard/armed" ] || rm -rf "$guard"
    mkdir -p "$guard/tree" "$state/manifest"
    touch "$guard/absent" "$guard/units" "$state/manifest/$role"
    # Of a run before this one that was not proved, the older state is the one to go back to.
    [ -e "$guard/manifest" ] || cp "$state/manifest/$role" "$guard/manifest"
    cat "$state/manifest/$role" "$stage/manifest" | cut -d' ' -f5- | cat - "$stage/beside" | sort -u |
    while IFS= read -r path; do
        if [ -e "$guard/tree$path" ] || grep -qxF -e "$path" "$guard/absent"; then
            continue
        elif [ -e "$path" ]; then
            mkdir -p "$guard/tree${path%/*}"
            cp --preserve=all --no-dereference "$path" "$guard/tree$path"
        else
            printf '%s\n' "$path" >>"$guard/absent"
        fi
    done
    while IFS= read -r unit; do
        grep -q "^$unit " "$guard/units" ||
            echo "$unit $(systemctl is-active "$unit") $(systemctl is-enabled "$unit" 2>/dev/null)" >>"$guard/units"
    done <"$stage/guarded"
    cp "$stage/rollback" "$guard/rollback"
    # It may write wherever the former files were, and asks systemd alone to start units. No /tmp of its own: on a full disk
    # there would be none.
    cat >"/etc/systemd/system/${timer%.timer}.service" <<UNIT
[Unit]
Description=Bring the former files of $role back

[Service]
Type=oneshot
ExecStart=sh $guard/rollback $role $state
CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID
NoNewPrivileges=yes
PrivateDevices=yes
PrivateMounts=yes
PrivateNetwork=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProcSubset=pid
RestrictAddressFamilies=AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@resources
IPAddressDeny=any
UNIT
    printf '%s\n' '[Unit]' "Description=Wait for the controller to prove that it reaches this host" \
        '[Timer]' "OnActiveSec=${guard_seconds}s" AccuracySec=1s '[Install]' WantedBy=timers.target \
        >"/etc/systemd/system/$timer"
    systemctl enable --quiet --no-reload "$timer"
    systemctl daemon-reload
    touch "$guard/armed"
    systemctl restart "$timer"
fi

# From here on the host changes. Stamps go first, so that a run which ends here is made good by the next.
mkdir -p "$state/manifest" "$state/converged"
while IFS= read -r stamp; do
    rm -f "$state/converged/$stamp"
done <"$stage/stamps"
# Until all is in place, the manifest names the old files and the new: none is ever forgotten.
touch "$state/manifest/$role"
cat "$state/manifest/$role" "$stage/manifest" | sort -u >"$state/manifest/.$role.new"
mv -f "$state/manifest/.$role.new" "$state/manifest/$role"

units_gone=
while read -r kind mode owner group path; do
    case $kind in
    dir)
        (umask 022 && mkdir -p "$path")
        chown "$owner:$group" "$path"
        chmod "00$mode" "$path" # chmod(1): else a set-group-ID bit would stay
        ;;
    file)
        (umask 022 && mkdir -p "${path%/*}")
        cp --preserve=mode,ownership "$stage/tree$path" "$path$suffix"
        mv -fT "$path$suffix" "$path"
        ;;
    gone)
        # A unit that is no longer wanted ends; its file alone would leave it running.
        case $path in
        /etc/systemd/system/*.service | /etc/systemd/system/*.timer | \
            /etc/systemd/system/*.socket | /etc/systemd/system/*.path)
            units_gone=1
            systemctl disable --quiet "${path##*/}" || true # its file may be gone already
            systemctl stop "${path##*/}" || [ "$(systemctl show -p LoadState --value "${path##*/}")" = not-found ]
            ;;
        esac
        rm -f "$path" "$path$suffix"
        ;;
    esac
done <"$stage/meta"
[ -z "$units_gone" ] || systemctl daemon-reload
cp "$stage/manifest" "$state/manifest/.$role.new"
mv -f "$state/manifest/.$role.new" "$state/manifest/$role"
