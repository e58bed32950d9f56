# The lock of a rollout, on a balancer: STATE/rollout.lock, whose line says whose it is.
#
# Takes it, unless somebody else has it; prints the line that is in it.
# Arguments: STATE_DIRECTORY ID LINE TAKE_OVER. TAKE_OVER is the id of a rollout that is dead; empty: none; `unknown`:
# one whose line cannot be read.
set -eu
state=$1 id=$2 line=$3 take_over=$4
lock=$state/rollout.lock
mkdir -p "$state"
exec 9>"$lock.flock"
flock --timeout 20 9
if [ ! -s "$lock" ] || grep -qF "\"id\": \"$id\"" "$lock" ||
    { [ -n "$take_over" ] && grep -qF "\"id\": \"$take_over\"" "$lock"; } ||
    { [ "$take_over" = unknown ] && ! grep -qF '"id": ' "$lock"; }; then
    printf '%s\n' "$line" >"$lock.new"
    mv -f "$lock.new" "$lock"
fi
cat "$lock"
