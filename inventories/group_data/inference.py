"""Inference nodes: what they serve, to whom, and within which limits.

Each key belongs to the role that its prefix names; docs/reference/ has all keys of each role with their types
and defaults. A key on a host goes before the same key here. `quench check` reads it all without a network.
"""

# --- base: what every host has ---------------------------------------------------------------------------------

# The administrator who logs in when something is wrong. Key only: the account has no password.
base_admin_user = "ops"
base_admin_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleEx ops@example.org"]

# Time servers inside the house. Without them the distribution's public pool is asked.
base_ntp_servers = ["ntp1.example.org", "ntp2.example.org"]

# A network without a way out needs a mirror of the distribution; the signatures stay those of the distribution.
# base_apt_mirror = "https://mirror.example.org/debian"
# base_apt_security_mirror = "https://mirror.example.org/debian-security"

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

# The keyring. `quench key` makes a key and shows it once; here stands only its hash. A client that changes over
# has two keys for a while. A key that is past its day is refused, without a run. (No key has the hashes below.)
nginx_clients = {
    "team-a": {
        "keys": [
            {
                "sha256": "0000000000000000000000000000000000000000000000000000000000000001",
                "expires": "2030-06-30",
            }
        ],
        "requests_per_minute": 120,
        "concurrent": 16,
    },
    "batch": {
        "keys": [
            {
                "sha256": "0000000000000000000000000000000000000000000000000000000000000002",
                "expires": "2030-06-30",
            }
        ],
        "models": ["llama-3.3-70b"],
        "requests_per_minute": 600,
        "burst": 0,
        "concurrent": 4,
    },
}

# --- logrotate: how long logs are kept -------------------------------------------------------------------------

# Six years, where HIPAA makes the access log a record (45 CFR 164.316(b)(2)(i)). Shorter where it does not.
logrotate_keep_days = 2190
