"""Inference nodes: what they serve, to whom, and within which limits.

Each key belongs to the role that its prefix names; docs/reference/ has all keys of each role with their types
and defaults. A key on a host goes before the same key here. `quench check` reads it all without a network.
"""

from quench.keyring import load as _keyring

# --- base: what every host has ---------------------------------------------------------------------------------

# The administrator who logs in when something is wrong. Key only: the account has no password.
base_admin_user = "ops"
base_admin_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleEx ops@example.org"]

# Time servers inside the house. Without them the distribution's public pool is asked.
base_ntp_servers = ["ntp1.example.org", "ntp2.example.org"]

# A network without a way out needs a mirror of the distribution; the signatures stay those of the distribution.
# base_apt_mirror = "https://mirror.example.org/debian"
# base_apt_security_mirror = "https://mirror.example.org/debian-security"

# --- firewall: where the host is, and what is relaxed -----------------------------------------------------------

firewall_zone = "inference"

# `world` is everyone. A host without mirrors fetches its packages from there, and says so to the auditor.
firewall_relaxations = {"world-out": "packages and Python wheels come from their publishers' servers"}

# --- nvidia_driver: the driver and all that goes with it -------------------------------------------------------

# One version names the whole set: kernel modules, libraries, fabric manager, DCGM and its exporter, container
# toolkit. To upgrade is to change it here, to roll back is to change it back. A set that cannot drive a host's GPUs is
# refused before anything is touched; roles/nvidia_driver/compatibility.yaml is the table.
nvidia_driver_version = "580.95.05"

# The GPUs stand with each host, since the run compares them with what is in it. Without them the driver is not
# Quench's business there, and no NVIDIA role does anything.
# nvidia_driver_gpus = {"h100-sxm": 8}

# A network without a way out needs a mirror of NVIDIA's repository. The public key is NVIDIA's file 3bf863cc.pub
# (8793F200.pub for Debian 13, D42D0685.pub for RHEL 9), or that of a mirror which signs by itself; then set its
# fingerprint too.
# nvidia_driver_repository = "https://mirror.example.org/cuda/repos/debian12/x86_64"
# nvidia_driver_repository_key = "secrets/3bf863cc.pub"
# nvidia_driver_repository_fingerprint = "0000000000000000000000000000000000000000"

# A loaded driver gives way to another only by a reboot. "never" installs, and ends the run on the host with the reboot
# as pending. "when-needed" reboots, one host at a time, and only into a driver that will load.
nvidia_driver_reboot = "never"

# Grace Hopper and Grace Blackwell: memory that CPU and GPU share belongs to the driver.
# nvidia_driver_module_options = {"NVreg_CoherentGPUMemoryMode": "driver"}

# --- mig: GPUs cut into slices ---------------------------------------------------------------------------------

# `nvidia-smi mig -lgip` lists the profiles of a GPU. All that uses a GPU stops for a moment when the layout changes.
# The slices are then given to models, one each: "mig_slice": "MIG-..." in vllm_models, as `nvidia-smi -L` lists them.
# mig_layout = [{"gpus": [6, 7], "slices": {"1g.10gb": 7}}]

# --- container_toolkit: GPUs for containers --------------------------------------------------------------------

# The engines below run without containers. For others: "podman", or "docker", by CDI alone.
# container_toolkit_engine = "podman"
# container_toolkit_repository_key = "secrets/libnvidia-container.asc"

# --- acme: a certificate that the host gets by itself -----------------------------------------------------------

# From a CA of the house that speaks ACME, instead of nginx_certificate and nginx_private_key. The host renews it by
# itself. The names stand with each host, since each has to lead to it alone.
# acme_directory = "https://ca.example.org/acme/acme/directory"
# acme_directory_ca = "secrets/ca/ca.crt"
# acme_zones = ["management"]

# --- dcgm, dcgm_exporter: GPU counters for Prometheus ----------------------------------------------------------

# A host with an address on the monitoring network has an exporter there, and nowhere else; over TLS, to clients whose
# certificate the CA has signed, from these networks. Address, certificate and key stand with each host.
dcgm_exporter_clients = ["198.51.100.128/25"]
# dcgm_exporter_address = "10.0.30.11"
# dcgm_exporter_certificate = "secrets/ca/10.0.30.11.crt"
# dcgm_exporter_private_key = "file:secrets/ca/10.0.30.11.key"
# dcgm_exporter_client_ca = "secrets/ca/ca.crt"

# --- vllm: the engines -----------------------------------------------------------------------------------------

# roles/vllm/requirements/ has a lock file for this version: every package with its hash.
vllm_version = "0.32.0"
vllm_index_url = "https://mirror.example.org/python/simple"

# A model is served by a unit of its own, vllm@NAME.service, on GPUs of its own.
#   revision  names the folder: /srv/models/NAME/REVISION. A new revision is a new folder; going back is a switch.
#   source    where the host fetches it. Without it the folder must be on the host already.
#   sha256    of the file SHA256SUMS at the source, which in turn pins every file. `sha256sum SHA256SUMS` tells it.
vllm_models = {
    "llama-3.3-70b": {
        "port": 8000,
        "gpus": [0, 1],
        "revision": "2026-10-01",
        "source": "https://mirror.example.org/models/llama-3.3-70b/2026-10-01",
        "sha256": "0000000000000000000000000000000000000000000000000000000000000000",
        "max_model_len": 32768,
    },
}

# How long a stopping engine may finish the answers it has begun.
vllm_drain_seconds = 300

# --- nginx: the way in -----------------------------------------------------------------------------------------

# The keyring: hashes of keys, with their days and limits. `quench keys add` makes a key and shows it once, `quench keys
# push` brings the keyring to all hosts within seconds: docs/guides/keys.md. A key that is past its day is refused,
# without a run. The path is from the checkout's top folder.
nginx_clients = _keyring("inventories/keyring.yaml")

# --- logrotate: how long logs are kept -------------------------------------------------------------------------

# Six years, where HIPAA makes the access log a record (45 CFR 164.316(b)(2)(i)). Shorter where it does not.
logrotate_keep_days = 2190
