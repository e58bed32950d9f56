# Bring the files of a role back to what they were before they were changed, and their units with them.
#
# Run by quench-rollback-ROLE.service, a while after install.sh changed the files, unless the controller has proved
# in between that it still reaches the host. install.sh wrote down in STATE/guard/ROLE:
#   tree/...  the former files under their absolute paths
#   absent    paths at which there was none
#   units     a line for each unit: NAME ACTIVE ENABLED
#   manifest  the role's former manifest
# Arguments: ROLE STATE_DIRECTORY
set -eu
role=$1 state=$2
guard=$state/guard/$role
# Each step is tried, whatever became of the one before.
set +e
# A command that the change has cut off may hold the lock for ever: it is waited for, but not long.
exec 9>/run/quench.lock
flock --timeout 10 9 || true
# Not before: the controller may have proved meanwhile that it reaches the host.
[ -e "$guard/armed" ] || exit 0

# As long as their files are there: without its ExecStop, a unit that is stopped leaves behind what it has loaded.
while read -r unit active enabled; do
    [ "$enabled" = enabled ] || systemctl disable --quiet "$unit"
    case $unit:$active in
    ssh.service:*) ;; # the way in, whoever has started it
    *:inactive | *:failed | *:unknown) systemctl stop "$unit" ;;
    esac
done <"$guard/units"

(cd "$guard/tree" && find . -type f -o -type l) | while IFS= read -r path; do
    path=${path#.}
    mkdir -p "${path%/*}"
    cp --preserve=all --no-dereference "$guard/tree$path" "$path.quench-old" && mv -fT "$path.quench-old" "$path"
done
while IFS= read -r path; do rm -f "$path"; done <"$guard/absent"
mv -f "$guard/manifest" "$state/manifest/$role"

systemctl daemon-reload
while read -r unit active enabled; do
    # The next run starts them anew with whatever files it brings.
    rm -f "$state/converged/$unit.restart" "$state/converged/$unit.reload"
    [ "$enabled" != enabled ] || systemctl enable --quiet "$unit"
    case $unit:$active in
    ssh.service:*) ;;
    *:inactive | *:failed | *:unknown) continue ;;
    esac
    # Also what was only just starting, or reloading. One that failed too often with the new files would not start again.
    systemctl reset-failed "$unit"
    systemctl restart "$unit"
done <"$guard/units"

logger --tag quench "the files of $role are back to what they were: the controller did not come back in time"
systemctl disable --quiet "quench-rollback-$role.timer"
rm -f "/etc/systemd/system/quench-rollback-$role.timer" "/etc/systemd/system/quench-rollback-$role.service"
rm -rf "$guard"
systemctl stop --no-block "quench-rollback-$role.timer"
systemctl daemon-reload
