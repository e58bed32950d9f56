# The running HAProxy has the maps that it read at its start. Arguments: ask|mend MAP...
# `ask` prints the maps that differ from their files and changes nothing; `mend` brings these into the process, each in
# one go, so that no request meets half a keyring: HAProxy's management.txt, "prepare map".
mode=$1 && shift
say() { echo "$1" | socat -t 5 - /run/haproxy/admin.sock; }

for map in "$@"; do
    wanted=$(LC_ALL=C sort "$map")
    present=$(say "show map $map" | sed '/^$/d; s/^0x[0-9a-f]* //' | LC_ALL=C sort)
    [ "$wanted" != "$present" ] || continue
    echo "$map"
    [ "$mode" = mend ] || continue
    version=$(say "prepare map $map" | sed -n 's/^New version created: //p')
    [ -n "$version" ] || { echo "HAProxy takes no new $map" >&2; exit 1; }
    printf 'add map @%s %s <<\n%s\n\n' "$version" "$map" "$wanted" | socat -t 5 - /run/haproxy/admin.sock
    say "commit map @$version $map"
done
