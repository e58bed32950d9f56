# Keep what Quench has brought to this host, so that it can come back: STATE/release/former.tar, for root alone.
#
# It holds the files that the manifests name, with mode and owner, the manifests, and the stamps of what was restarted
# and reloaded. Beside it stand
#   units  a line for each unit with a stamp, in the order in which they were started: NAME ACTIVE ENABLED
#   facts  lines for the controller: `plan HASH`, and `model NAME` for each model that answers
#   open   until the controller has seen the next release serve. A release that is kept is not kept over: what came
#          after it may be half done.
# Prints `fresh` if it has kept the release now, and the facts.
# Arguments: STATE_DIRECTORY MODELS
set -eu
umask 077
state=$1 models=$2
release=$state/release
mkdir -p "$release" "$state/manifest" "$state/converged"
# What one that was killed left there.
rm -rf "$release"/keep.?????? "$release"/restore.??????
if [ ! -e "$release/open" ] || [ ! -e "$release/former.tar" ]; then
    stage=$(mktemp -d "$release/keep.XXXXXX")
    trap 'rm -rf "$stage"' EXIT
    trap 'exit 1' HUP INT TERM PIPE
    cat "$state"/manifest/* 2>/dev/null | cut -d' ' -f5- | sort -u | while IFS= read -r path; do
        # One that somebody took away cannot come back.
        if [ -e "$path" ] || [ -L "$path" ]; then printf '%s\n' "${path#/}"; fi
    done >"$stage/paths"
    (cd / && find "${state#/}/manifest" "${state#/}/converged" -type f ! -name '.*') >>"$stage/paths"
    tar --create --file "$stage/former.tar" --directory / --numeric-owner --no-recursion --verbatim-files-from \
        --files-from "$stage/paths"
    touch "$stage/units"
    ls -tr "$state/converged" | sed -n 's/\.\(restart\|reload\)$//p' | while IFS= read -r unit; do
        grep -q "^$unit " "$stage/units" ||
            echo "$unit $(systemctl is-active "$unit") $(systemctl is-enabled "$unit" 2>/dev/null)" >>"$stage/units"
    done
    { sed 's/^/plan /' "$release/plan" 2>/dev/null || true; } >"$stage/facts"
    for model in $models; do echo "model $model"; done >>"$stage/facts"
    mv -f "$stage/units" "$stage/facts" "$stage/former.tar" "$release/"
    date -u +%FT%TZ >"$release/open"
    echo fresh
fi
cat "$release/facts"
