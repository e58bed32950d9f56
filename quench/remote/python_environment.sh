# Build a Python environment from a lock file, and mark it complete only when all of it is there.
#
# Standard input: the lock file. Arguments: FOLDER SHA256-OF-LOCK INDEX-URL (may be empty)
set -eu
folder=$1 want=$2 index=$3
umask 022
if [ -s "$folder/.complete" ]; then
    [ "$(cat "$folder/.complete")" != "$want" ] || exit 0 # a run that was killed has finished it meanwhile
    echo "quench: $folder was built from another lock file; what is built is never changed: give the lock file a new name" >&2
    exit 1
fi
mkdir -p "${folder%/*}"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
lock=$scratch/lock
cat >"$lock"
if [ "$(sha256sum <"$lock" | cut -d' ' -f1)" != "$want" ]; then
    echo "quench: the lock file did not arrive whole; nothing was built" >&2
    exit 1
fi
# The pip that venv(1) would copy into each environment: it takes five seconds to compile there, and an environment
# that serves needs none. It runs from here, by the environment's own Python, and goes again.
python3 -c '
import ensurepip, glob, os, sys, sysconfig, zipfile
# Where a distribution keeps it (CPython: configure --with-wheel-pkg-dir), or else CPython itself.
folders = sysconfig.get_config_var("WHEEL_PKG_DIR"), os.path.join(os.path.dirname(ensurepip.__file__), "_bundled")
wheels = [wheel for folder in folders if folder for wheel in glob.glob(os.path.join(folder, "pip-*.whl"))]
if not wheels:
    sys.exit("quench: this Python has no pip to give to an environment; install its venv package")
zipfile.ZipFile(wheels[0]).extractall(sys.argv[1])
' "$scratch"
# --clear: what an interrupted run left behind is not trusted.
python3 -m venv --clear --without-pip "$folder"
set -- --no-deps --only-binary :all: --require-hashes
if [ -n "$index" ]; then
    set -- "$@" --index-url "$index"
    # Over plain HTTP the hashes alone vouch for what comes.
    case $index in
    http://\[*) host=${index#http://} && set -- "$@" --trusted-host "${host%%]*}]" ;;
    http://*) host=${index#http://} && set -- "$@" --trusted-host "${host%%[:/]*}" ;;
    esac
fi
# The lock names every package with its hash, so nothing is resolved and nothing unknown is installed.
"$folder/bin/python3" "$scratch/pip" install --quiet --no-input --no-cache-dir --disable-pip-version-check \
    --no-compile "$@" --requirement "$lock"
# Twenty thousand files for vLLM: on all cores, where pip would take one. Engines may not write here, and would compile
# them anew at each start. Some packages bring files for other versions of Python, which are left as they are.
"$folder/bin/python3" -m compileall -qq --workers 0 "$folder/lib" || true
printf '%s\n' "$want" >"$folder/.complete"
