# Bring packages to exactly the versions asked for, or bring back what was there.
#
# Arguments: MANAGER FAMILY CHECK HOLD_BACK WANTED SOURCE. FAMILY has patterns of the names of all that moves together.
# WANTED has a line for each package, NAME VERSION. VERSION is upstream's, without epoch and revision; `-` wants the
# package gone; `*` takes any version, and in such a NAME `$(uname -r)` stands for the running kernel and
# `$(next-kernel)` for the one that boots next. SOURCE is the file of the repository, which a refusal and a failure take
# away: its pins name the new set by then, and nothing but the next run is to bring that. With a wrong signature it would
# also fail every other use of the package manager.
set -eu
set -f # patterns of names are for the package managers
manager=$1 family=$2 check=$3 hold_back=$4 source=$6
next=$({ grubby --default-kernel || ls -1 /boot/ | sed -n 's/^vmlinuz-//p'; } 2>/dev/null | sed 's,.*/vmlinuz-,,' | sort -V | tail -n 1)
wanted=$(echo "$5" | sed -e "s/\$(uname -r)/$(uname -r)/g" -e "s/\$(next-kernel)/${next:-$(uname -r)}/g" | sort -u)
names=$(echo "$wanted" | awk '$2 != "*" { print $1 }')
stage=$(mktemp -d /run/quench.XXXXXX)
log=$stage/log
masked=
# What was held back for this and serves on is not to stay masked if this fails.
leave() {
    code=$?
    [ $code = 0 ] || for unit in $masked; do
        systemctl unmask --runtime --quiet "$unit"
        ! grep -qx "$unit" "$stage/active" || systemctl start --no-block "$unit"
    done
    rm -rf "$stage"
}
trap leave EXIT
trap 'exit 1' HUP INT TERM PIPE

give_up() {
    [ -z "$source" ] || rm -f "$source"
    echo "quench: $1" >&2
    exit 1
}
refuse() { give_up "$1; nothing was installed"; }
# NAME EPOCH:VERSION-REVISION of those that are whole.
installed() {
    if [ "$manager" = dnf ]; then
        rpm -qa --qf '%{NAME} %{EPOCHNUM}:%{VERSION}-%{RELEASE}\n' $names $family 2>/dev/null | sort -u
    else
        dpkg-query -W -f '${db:Status-Abbrev}|${Package} ${Version}\n' $names $family 2>/dev/null |
            sed -n 's/^[ih]i |//p' | sort -u
    fi
}
is_there() {
    if [ "$manager" = dnf ]; then
        rpm -q --quiet "$1" || rpm -q --quiet --whatprovides "$1"
    else
        dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^[ih]i '
    fi
}
# Install and remove what the lines NAME VERSION say, VERSION in full, `-` or `*`.
transaction() {
    install='' remove=''
    while read -r name version; do
        case $version in
        -) remove="$remove $name" ;;
        '*') install="$install $name" ;;
        *) [ "$manager" = dnf ] && install="$install $name-$version" || install="$install $name=$version" ;;
        esac
    done
    if [ "$manager" = dnf ]; then
        [ -z "$remove" ] || dnf -q -y remove $remove
        [ -z "$install" ] || dnf -q -y $excludes --allowerasing --setopt=install_weak_deps=False "$1" $install
    else
        [ "$1" = install ] || set -- 'install --reinstall'
        # needrestart(1) would restart engines, which then had new libraries and the old module.
        export NEEDRESTART_SUSPEND=1 DEBIAN_FRONTEND=noninteractive
        apt-get -q -y -o Acquire::Retries=3 -o Dpkg::Options::=--force-confold -o DPkg::Lock::Timeout=300 \
            --no-install-recommends --allow-downgrades --allow-change-held-packages \
            $1 $install $(for name in $remove; do echo "$name-"; done)
    fi
}
# The lists are of this hour, and no source, key or preference has changed since.
updated=/run/quench-apt-updated
is_fresh() { [ -n "$(find $updated -mmin -60 2>/dev/null)" ] && [ -z "$(find /etc/apt -newer $updated -print -quit)" ]; }
update() {
    if [ "$manager" = dnf ]; then
        dnf -q -y makecache # which looks by itself whether it must ask
    elif ! is_fresh; then
        touch "$stage/now"
        apt-get -q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 update && mv "$stage/now" $updated
    fi
}

# Some other run of a package manager, such as the one of a fresh cloud image, may hold a lock that apt does not wait for.
patiently() {
    for attempt in $(seq 30); do
        "$@" >"$log" 2>&1 && return 0
        grep -qiE 'could not get lock|lock-frontend|is locked by' "$log" || return 1
        sleep 10
    done
    return 1
}
patiently update || true
cp "$log" "$stage/update"
# What a run that died left half unpacked or half configured, packages included that are not named here. apt does not
# unpack again what dpkg marks as half unpacked (H) or in need of that (R): dpkg-query(1), db:Status-Abbrev.
if [ "$manager" = apt ] && [ -n "$(dpkg --audit)" ]; then
    export DEBIAN_FRONTEND=noninteractive
    patiently dpkg --configure -a --force-confold || true
    broken=$(dpkg-query -W -f '${db:Status-Abbrev}|${Package}\n' | sed -n -e 's/^.H.|//p' -e 's/^.[^H]R|//p')
    if [ -n "$broken" ]; then
        (cd "$stage" && set +f && apt-get -q download $broken && dpkg --force-confold --unpack ./*.deb) >"$log" 2>&1 || true
        patiently dpkg --configure -a --force-confold || true
    fi
    patiently apt-get -q -y -o Dpkg::Options::=--force-confold --no-install-recommends --fix-broken install || true
fi
# apt goes on with the lists that it has if a signature is wrong, and says so in a warning.
unverified='GPG error|OpenPGP signature verification failed|is not signed|Bad GPG signature|GPG signature verification error'
if grep -E "$unverified" "$stage/update" >&2; then
    rm -f $updated
    refuse "a repository's signature could not be verified with the key that this host has for it"
fi

# NAME VERSION of all that a repository has of what is wanted, VERSION in full: in one question, since each is slow.
offered=$(
    if [ "$manager" = dnf ]; then
        specs=$(echo "$wanted" | awk '$2 != "-" && $2 != "*" { print $1 "-" $2 }')
        [ -z "$specs" ] || dnf -q repoquery --qf '%{name} %{epoch}:%{version}-%{release}' $specs 2>/dev/null || true
        # A name may be what a package provides, as that of the headers for one kernel.
        for name in $(echo "$wanted" | awk '$2 == "*" { print $1 }'); do
            is_there "$name" || { dnf -q repoquery "$name"; dnf -q repoquery --whatprovides "$name"; } 2>/dev/null |
                sed "s/.*/$name */" || true
        done
    else
        apt-cache madison $(echo "$wanted" | cut -d' ' -f1) 2>/dev/null | awk '{ print $1, $3 }'
    fi
)
# All at once, since the package managers name one at a time, and before anything changes.
lines=$(echo "$wanted" | while read -r name version; do
    case $version in
    -) ! is_there "$name" || echo "$name -" ;;
    '*') { is_there "$name" || echo "$offered" | grep -q "^$name "; } && echo "$name *" || echo "$name ?" ;;
    *)
        # Without the epoch before and the revision behind it is upstream's version.
        full=$(echo "$offered" | awk -v name="$name" -v want="$version" '
            $1 == name { v = $2; sub(/^[0-9]+:/, "", v); sub(/-[^-]*$/, "", v); if (v == want) { print $2; exit } }')
        echo "$name ${full:-?$version}"
        ;;
    esac
done)
missing=$(echo "$lines" | awk '$2 ~ /^\?/ { sub(/^\?/, " ", $2); print $1 $2 }' | paste -s -d ,)
if [ -n "$missing" ]; then
    tail -n 5 "$stage/update" >&2
    rm -f $updated # the mirror may be mended before the hour is over
    refuse "no repository of this host has: $missing"
fi

# A masked service is neither started nor restarted by a package.
for unit in $hold_back; do ! systemctl is-active --quiet "$unit" || echo "$unit"; done >"$stage/active"
masked=$hold_back
[ -z "$hold_back" ] || systemctl mask --runtime --quiet $hold_back
excludes=
before=$(installed)
is_as_wanted() {
    present=$(installed)
    [ -z "$(echo "$lines" | while read -r name version; do
        has=$(echo "$present" | sed -n "s/^$name //p")
        case $version in
        '*') is_there "$name" || echo "$name" ;;
        -) echo "$has" ;;
        *) [ "${has#0:}" = "${version#0:}" ] || echo "$name" ;;
        esac
    done | sed '/^$/d')" ]
}
is_good() { is_as_wanted && sh -c "$check"; }
how=install
if is_as_wanted; then
    ! is_good >"$log" 2>&1 || exit 0
    # All is there, and yet the check fails: what the packages do at their installation is done once more.
    how=reinstall
    lines=$(echo "$lines" | grep -v ' -$')
fi
# What a kernel module is built with must be there before its package runs the build: rpm orders a transaction by
# dependencies alone.
any=$(echo "$lines" | grep ' \*$' || true)
pinned=$(echo "$lines" | grep -v ' \*$' || true)
: >"$log"
[ -z "$any" ] || echo "$any" | transaction install >>"$log" 2>&1 || true
[ -z "$pinned" ] || echo "$pinned" | transaction "$how" >>"$log" 2>&1 || true
# The exit code says too little: it is 0 where the build of a kernel module failed, and 1 where a service did.
! is_good >>"$log" 2>&1 || exit 0

tail -n 40 "$log" >&2
# A list that is no longer true may have been the cause.
rm -f $updated
after=$(installed)
# Where any version will do there is nothing to go back to.
[ -n "$(echo "$wanted" | grep -v ' \*$')" ] || exit 1
[ "$before" != "$after" ] || give_up "the package manager or the check of its work failed; the set is as it was"
back=$(
    echo "$before" | sed '/^$/d'
    echo "$after" | while read -r name version; do
        echo "$before" | grep -q "^$name " || echo "$name -"
    done
)
# The former packages are not among those that a pin of dnf lets in.
excludes=--disableexcludes=all
echo "$back" | transaction install >"$log" 2>&1 || true
now=$(installed)
if [ "$now" = "$before" ]; then
    give_up "the package manager or the check of its work failed; the former packages are back"
fi
tail -n 20 "$log" >&2
differ=$(printf '%s\n' "$before" "$now" | sort | uniq -u | cut -d' ' -f1 | sed '/^$/d' | uniq | paste -s -d ' ')
give_up "the former packages could not be brought back in full: $differ; the next run tries again"
