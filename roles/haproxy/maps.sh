# The running HAProxy has the maps that it read at its start. Arguments: ask|mend MAP...
# `ask` prints the maps that differ from their files and changes nothing; `mend` brings these into the process, each in
# one go, so that no request meets half a keyring: HAProxy's management.txt, "prepare map". It then waits for the process
# from before a reload, if there is one: its connections have the former keyring until they are closed, and nobody can tell
# it otherwise.
mode=$1 && shift
say() { echo "$1" | socat -t 5 - /run/haproxy/admin.sock; }
former() {
    main=$(systemctl show --property MainPID --value haproxy.service)
    now=$(say "show info" | sed -n 's/^Pid: //p')
    grep -lx "PPid:.$main" /proc/[0-9]*/status 2>/dev/null | cut -d/ -f3 | grep -vx "$now"
}
present() { say "show map $1" | sed '/^$/d; s/^0x[0-9a-f]* //' | LC_ALL=C sort; }

for map in "$@"; do
    wanted=$(LC_ALL=C sort "$map")
    [ "$wanted" != "$(present "$map")" ] || continue
    echo "$map"
    [ "$mode" = mend ] || continue
    version=$(say "prepare map $map" | sed -n 's/^New version created: //p')
    # One command takes no more than a buffer.
    refused=$(printf '%s\n' "$wanted" | split -C 16000 --filter "
        { echo 'add map @$version $map <<'; cat; echo; } | socat -t 5 - /run/haproxy/admin.sock" | grep .)
    if [ -z "$version" ] || [ -n "$refused" ] || [ "$wanted" != "$(present "@$version $map")" ]; then
        echo "HAProxy does not take the new $map: $refused" >&2
        exit 1
    fi
    say "commit map @$version $map"
done
# Its end comes with its last answer, or with `hard-stop-after`, which is no longer than this.
seconds=7300
while [ "$mode" = mend ] && [ "$seconds" -gt 0 ] && [ -n "$(former)" ]; do
    sleep 1
    seconds=$((seconds - 1))
done
