# Apply the MIG layout while nothing uses the GPUs, and start what was stopped for it.
# Arguments: CONFIG LAYOUT
set -eu
trap 'exit 1' HUP INT TERM PIPE
clients=$(systemctl list-units --plain --no-legend --state=active,activating,reloading \
    'vllm@*.service' 'ollama*.service' 'nvidia-dcgm*.service' nvidia-persistenced.service | cut -d' ' -f1)
trap '[ -z "$clients" ] || systemctl start $clients' EXIT
[ -z "$clients" ] || systemctl stop $clients
nvidia-mig-parted apply -f "$1" -c "$2"
# The refresh of CDI knows nothing of MIG. container-toolkit, cdi-support.
[ "$(systemctl show -p LoadState --value nvidia-cdi-refresh.service)" != loaded ] || systemctl restart nvidia-cdi-refresh.service
