# Take from a node that leaves its fleet what it may not keep: services, secrets, weights, caches, the former release.
#
# `ask` says what there is of it, a line each, and changes nothing. `wipe` takes it away; it can be run again.
#   unit NAME STATE          runs, or would run after a boot
#   secret BYTES PATH        a file that its service alone may read, or a folder with copies of such files
#   data FILES BYTES FOLDER  weights or caches
#   elsewhere LINK -> PATH   a link out of such a folder: nobody knows whose that is, so it is left alone
#   shared TYPE FOLDER       such a folder on a file system that other hosts may use: it is left alone
#   certificate BASE64 PATH  for the report; it is no secret, and stays
# `wipe` says `trimmed FOLDER` for each file system whose disk was told of the blocks that are free now.
# A secret is known by its mode in the manifest: Quench lets no file with a secret be open to others (quench/files.py).
# Arguments: ask|wipe STATE_DIRECTORY ROLES UNITS MODELS CACHES...
# ROLES and UNITS stay: words with spaces between them. MODELS and CACHES are folders.
set -eu
umask 077
act=$1 state=$2 roles=$3 units=$4 models=$5
shift 4
if [ -z "$roles" ] || [ -z "$units" ]; then
    echo "quench: nobody has said what stays; the way in would go as well" >&2
    exit 1
fi

if [ ! -d "$state/manifest" ]; then
    echo "quench: $state/manifest is not there, and nobody else knows where the secrets are; look at the host" >&2
    exit 1
fi
tab=$(printf '\t')

has() { case " $1 " in *" $2 "*) ;; *) return 1 ;; esac; }

# The last that was started comes first.
running() {
    ls -t "$state/converged" 2>/dev/null | sed -n 's/\.\(restart\|reload\)$//p' | awk '!known[$0]++' |
    while IFS= read -r unit; do
        if has "$units" "$unit"; then continue; fi
        active=$(systemctl is-active "$unit") || true # it says so by its exit status as well
        enabled=$(systemctl is-enabled "$unit" 2>/dev/null) || true
        case $active/$enabled in
        inactive/enabled* | failed/enabled*) echo "unit $unit enabled" ;;
        inactive/* | failed/* | unknown/*) ;;
        *) echo "unit $unit $active" ;;
        esac
    done
}

manifests() {
    for manifest in "$state"/manifest/*; do
        role=${manifest##*/}
        # One role may have several: base, base-sources.
        if [ -e "$manifest" ] && ! has "$roles" "${role%%-*}"; then printf '%s\n' "$manifest"; fi
    done
}

secrets() {
    {
        manifests | while IFS= read -r manifest; do
            # With what a run that was killed on its way left beside it.
            sed -n 's/^[^ ]* [0-7]*0 [^ ]* [^ ]* \(.*\)$/\1\n\1.quench-new\n\1.quench-old/p' "$manifest"
        done
        # The last: what the role acme has got from a CA by itself, and its account there.
        printf '%s\n' "$state/release" /run/quench.?????? "$state-acme"
    } | sort -u | while IFS= read -r path; do
        [ -e "$path" ] || [ -L "$path" ] || continue
        find "$path" ! -type d -printf '%s\n' | awk -v path="$path" '{ sum += $1 } END { printf "secret %.0f %s\n", sum, path }'
    done
}

# Each folder where it really is, and what is mounted below it: TOP, a tab, ROOT; without those that are left alone. With
# `say` these are told instead.
roots() {
    say=$1
    shift
    for folder in "$@"; do
        [ -d "$folder" ] || continue
        top=$(readlink -f "$folder")
        case $top in
        /*/*) ;;
        *) # the folder of a whole disk, or of the system
            [ -z "$say" ] || echo "elsewhere $folder -> $top"
            continue
            ;;
        esac
        { echo "$top" && awk -v top="$top/" 'index($5, top) == 1 { print $5 }' /proc/self/mountinfo; } |
        while IFS= read -r root; do
            type=$(stat -f -c %T "$root")
            case $type in
            ext2/ext3 | xfs | btrfs | zfs | f2fs | tmpfs | overlayfs) [ -n "$say" ] || echo "$top$tab$root" ;;
            *) [ -z "$say" ] || echo "shared $type $root" ;;
            esac
        done
    done
}

# Links in the folder of the models that lead out of it to something.
links() {
    roots "" "$models" | while IFS=$tab read -r top root; do
        find "$root" -xdev -type l | while IFS= read -r link; do
            target=$(readlink -e "$link") || continue
            case $target in
            "$top"/*) ;;
            *) echo "elsewhere $link -> $target" ;;
            esac
        done
    done
}

data() {
    roots "" "$@" | while IFS=$tab read -r top root; do
        find "$root" -xdev -mindepth 1 ! -type d ! -type l -printf '%s\n' |
            awk -v root="$root" '{ sum += $1 } END { if (NR) printf "data %d %.0f %s\n", NR, sum, root }'
    done
}

certificates() {
    manifests | while IFS= read -r manifest; do
        cut -d' ' -f5- "$manifest" | sed -n '/\.crt$/p' | while IFS= read -r path; do
            [ ! -e "$path" ] || echo "certificate $(base64 -w 0 "$path") $path"
        done
    done
}

case $act in
ask)
    running
    secrets
    data "$@"
    links
    roots say "$@"
    certificates
    ;;
wipe)
    running | while read -r _ unit _; do
        systemctl disable --quiet "$unit" || true # some have nothing to enable
        if ! systemctl stop "$unit"; then
            echo "quench: $unit does not stop, and nothing was removed; see journalctl --unit $unit" >&2
            exit 1
        fi
    done
    secrets | cut -d' ' -f3- | while IFS= read -r path; do
        rm -rf "$path"
    done
    # The manifest names no file that is meant to be gone: AIDE would tell of each of them.
    manifests | while IFS= read -r manifest; do
        new=$state/manifest/.${manifest##*/}.new
        sed '/^[^ ]* [0-7]*0 /d' "$manifest" >"$new"
        if cmp -s "$new" "$manifest"; then rm -f "$new"; else mv -f "$new" "$manifest"; fi
    done
    links >"$state/.links"
    roots "" "$@" | while IFS=$tab read -r top root; do
        find "$root" -xdev -mindepth 1 ! -type d ! -type l -delete
        find "$root" -xdev -type l | while IFS= read -r link; do
            grep -qF "elsewhere $link -> " "$state/.links" || rm -f "$link"
        done
        # Not those on which something is mounted, or left alone.
        find "$root" -xdev -depth -mindepth 1 -type d -empty -delete 2>/dev/null || true
    done
    rm -f "$state/.links"
    { echo / && echo "$state" && roots "" "$@" | cut -f2; } | while IFS= read -r path; do
        stat -c %m "$path"
    done | sort -u | while IFS= read -r mount; do
        # What was deleted is free only when the file system has said so to the disk.
        sync --file-system "$mount"
        if fstrim "$mount" 2>/dev/null; then echo "trimmed $mount"; fi
    done
    ;;
*)
    echo "quench: $act is neither ask nor wipe" >&2
    exit 1
    ;;
esac
