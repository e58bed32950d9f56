# Fetch a model's files and put the folder into its place only when every checksum holds.
#
# The folder's SHA256SUMS names the files; its own hash is pinned in the inventory, and so pins them all.
# An interrupted fetch goes on where it stopped. Arguments: URL FOLDER SHA256
set -eu
url=$1 folder=$2 want=$3
part=$folder.part
holds() { printf '%s  %s\n' "$1" "$2" | sha256sum --check --status; }
# A run that was killed may have finished it meanwhile.
if [ -f "$folder/SHA256SUMS" ]; then
    ! holds "$want" "$folder/SHA256SUMS" || exit 0
    echo "quench: $folder holds other files than the inventory pins; a revision is never changed under an engine that may serve it: name a new revision" >&2
    exit 1
fi
umask 022
mkdir -p "$part"
cd "$part"
fetch() { curl --fail --silent --show-error --location --retry 3 --connect-timeout 10 --speed-limit 1024 --speed-time 60 "$@"; }

fetch --output SHA256SUMS "$url/SHA256SUMS"
if ! holds "$want" SHA256SUMS; then
    echo "quench: $url/SHA256SUMS is not the one that the inventory pins; nothing was put in place" >&2
    exit 1
fi
while read -r sum name || [ -n "$sum" ]; do
    name=${name#\*} # sha256sum(1): so it marks a file read as binary
    case $name in
    /* | *..*)
        echo "quench: $url/SHA256SUMS names a file outside its folder: $name" >&2
        exit 1
        ;;
    esac
    [ -f "$name" ] && holds "$sum" "$name" && continue
    fetch --continue-at - --create-dirs --output "$name" "$url/$name" || true
    holds "$sum" "$name" && continue
    rm -f "$name" # what was there before was another file
    fetch --create-dirs --output "$name" "$url/$name"
    if ! holds "$sum" "$name"; then
        echo "quench: $url/$name does not match its checksum; nothing was put in place" >&2
        exit 1
    fi
done <SHA256SUMS
# Engines load whatever lies there: what a fetch of another list has left behind is none of this model.
find . -type f ! -path ./SHA256SUMS | while IFS= read -r file; do
    sed -e 's/^[^ ]* [ *]//' -e 's,^\./,,' SHA256SUMS | grep -qxF -e "${file#./}" || rm -f "$file"
done
chmod -R u=rwX,go=rX .
if [ -e "$folder" ]; then
    echo "quench: $folder is there without a SHA256SUMS, so nobody knows what it holds; move it away" >&2
    exit 1
fi
mv -T "$part" "$folder"
