# Bring back the release that keep_release.sh kept, and start anew or reload the units that have another one now.
#
# It can be run again: stamps of units go before the first file changes, and come back when the unit has them. Packages,
# users and what lies side by side (/opt/vllm, /srv/models) stay as they are.
# Arguments: STATE_DIRECTORY
set -eu
umask 077
state=$1
release=$state/release
if [ ! -e "$release/former.tar" ]; then
    echo "quench: no release is kept on this host" >&2
    exit 1
fi
rm -rf "$release"/restore.??????
stage=$(mktemp -d "$release/restore.XXXXXX")
trap 'rm -rf "$stage"' EXIT
trap 'exit 1' HUP INT TERM PIPE
mkdir "$stage/tree"
tar --extract --file "$release/former.tar" --directory "$stage/tree" --numeric-owner --same-owner --same-permissions
old=$stage/tree$state
mkdir -p "$old/manifest" "$old/converged"

# Whoever runs this has come in: no timer of a run that failed is to change files behind it.
for guard in "$state"/guard/*; do
    [ -e "$guard" ] || continue
    timer=quench-rollback-${guard##*/}.timer
    systemctl disable --quiet --now "$timer" || true # a run may have died before it was there
    rm -rf "$guard" "/etc/systemd/system/$timer" "/etc/systemd/system/${timer%.timer}.service"
done

# Units that only the newer release has.
for stamp in "$state"/converged/*.restart "$state"/converged/*.reload; do
    unit=${stamp##*/}
    unit=${unit%.*}
    if [ -e "$stamp" ] && ! grep -q "^$unit " "$release/units"; then echo "$unit"; fi
done | sort -u >"$stage/units-gone"
# One that died on its way in has no stamp yet.
cat "$state"/manifest/* 2>/dev/null | cut -d' ' -f5- | sort -u >"$stage/now"
cat "$old"/manifest/* 2>/dev/null | cut -d' ' -f5- | sort -u >"$stage/then"
comm -23 "$stage/now" "$stage/then" >"$stage/gone"
sed -n 's,^/etc/systemd/system/\([^/]*\.\(service\|timer\|path\|socket\)\)$,\1,p' "$stage/gone" >>"$stage/units-gone"
sort -u "$stage/units-gone" | while IFS= read -r unit; do
    systemctl disable --quiet "$unit" || true # its file may be gone already
    systemctl stop "$unit" || [ "$(systemctl show -p LoadState --value "$unit")" = not-found ]
    rm -f "$state/converged/$unit.restart" "$state/converged/$unit.reload"
done

# What each unit needs, by its stamps, before any file changes.
while read -r unit active enabled; do
    was=$active need=
    # It was about to be active: an engine loads for a while.
    case $active in activating | reloading) active=active ;; esac
    if ! cmp -s "$state/converged/$unit.reload" "$old/converged/$unit.reload"; then need=reload; fi
    if ! cmp -s "$state/converged/$unit.restart" "$old/converged/$unit.restart"; then need=restart; fi
    case "$active $(systemctl is-active "$unit")" in
    "active active" | "active reloading") ;;
    "active activating") [ "$was" = activating ] || need=restart ;;
    "active "*) need=restart ;;
    esac
    [ -z "$need" ] || rm -f "$state/converged/$unit.$need"
    echo "$unit $active ${enabled:-unknown} ${need:-nothing}"
done <"$release/units" >"$stage/needs"

while IFS= read -r path; do
    rm -f "$path"
done <"$stage/gone"
while IFS= read -r path; do
    [ -e "$stage/tree$path" ] || [ -L "$stage/tree$path" ] || continue
    if [ "$(stat -c '%a %u %g %F' "$path" 2>/dev/null)" = "$(stat -c '%a %u %g %F' "$stage/tree$path")" ] &&
        cmp -s "$path" "$stage/tree$path"; then
        continue
    fi
    (umask 022 && mkdir -p "${path%/*}")
    cp --preserve=mode,ownership --no-dereference "$stage/tree$path" "$path.quench-old"
    mv -fT "$path.quench-old" "$path"
done <"$stage/then"
for manifest in "$state"/manifest/*; do
    [ -e "$old/manifest/${manifest##*/}" ] || rm -f "$manifest"
done
for manifest in "$old"/manifest/*; do
    [ -e "$manifest" ] || continue
    cmp -s "$manifest" "$state/manifest/${manifest##*/}" || cp --preserve=mode,ownership "$manifest" "$state/manifest/"
done

# Stamps of what a role has done beside its files: the next run looks whether it has to be done again.
for stamp in "$state"/converged/*; do
    case $stamp in
    *.restart | *.reload) ;;
    *) cmp -s "$stamp" "$old/converged/${stamp##*/}" || rm -f "$stamp" ;;
    esac
done

systemctl daemon-reload
failed=
while read -r unit active enabled need; do
    case $enabled in
    enabled) systemctl unmask --runtime --quiet "$unit" && systemctl enable --quiet "$unit" ;;
    disabled) systemctl disable --quiet "$unit" ;;
    esac || failed="$failed $unit"
    if [ "$active" = active ]; then
        [ "$need" != restart ] || systemctl reset-failed "$unit" 2>/dev/null || true
        case $need in
        restart | reload) systemctl "$need" "$unit" || { failed="$failed $unit" && continue; } ;;
        esac
    else
        systemctl stop "$unit" || failed="$failed $unit"
    fi
    for kind in restart reload; do
        if [ -e "$old/converged/$unit.$kind" ]; then
            cmp -s "$old/converged/$unit.$kind" "$state/converged/$unit.$kind" ||
                cp --preserve=mode,ownership "$old/converged/$unit.$kind" "$state/converged/"
        else
            rm -f "$state/converged/$unit.$kind"
        fi
    done
done <"$stage/needs"
if [ -n "$failed" ]; then
    echo "quench: not brought back:$failed; see journalctl --unit" >&2
    exit 1
fi
logger --tag quench "the former release is back"
