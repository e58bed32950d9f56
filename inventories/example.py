"""A worked example: a node for each platform, and one with all of NVIDIA's parts. `quench render` needs no more.

    quench ca create secrets/ca
    quench ca issue secrets/ca llm.example.org
    quench ca issue secrets/ca 10.0.30.14
    cp tests/golden/keys/repository.asc secrets/ca
    quench check inventories/example.py deploys/inference.py
    quench render inventories/example.py deploys/inference.py

What the nodes have in common stands in group_data/; the names below are groups.
"""

import os

# Where certificates and keys are, on the machine that runs this. Never in the repository.
_secrets = os.environ.get("QUENCH_SECRETS", "secrets/ca")
_tls = {
    "nginx_server_name": "llm.example.org",
    "nginx_certificate": f"{_secrets}/llm.example.org.crt",
    "nginx_private_key": f"file:{_secrets}/llm.example.org.key",
}

# gpg --show-keys --fingerprint repository.asc. The key of this example was thrown away, and signs nothing.
_fingerprint = "9269E02E75DD869883F461C4271E00D103406560"

inference = [
    ("node1.example.org", {"platform": "debian-12", **_tls}),
    ("node2.example.org", {"platform": "debian-13", **_tls}),
    (
        "node3.example.org",
        {
            "platform": "ubuntu-24.04",
            # The host gets its certificate from the house's ACME CA and renews it by itself: no files of ours.
            "nginx_server_name": "llm3.example.org",
            "acme_directory": "https://ca.example.org/acme/acme/directory",
            "acme_directory_ca": f"{_secrets}/ca.crt",
            "acme_names": ["llm3.example.org"],
            "acme_email": "pki@example.org",
            # Two models on one node: each has its port, its GPUs and its unit.
            "vllm_models": {
                "llama-3.3-70b": {"port": 8000, "gpus": [0, 1], "revision": "2026-10-01"},
                "qwen-coder": {
                    "port": 8001,
                    "gpus": [2],
                    "revision": "7",
                    "engine_args": {"gpu-memory-utilization": 0.85, "enable-prefix-caching": False},
                },
            },
        },
    ),
    (
        "node4.example.org",
        {
            "platform": "ubuntu-24.04",
            **_tls,
            # The run compares this with the PCI bus. Eight on one board: the fabric manager comes with the driver.
            "nvidia_driver_gpus": {"h100-sxm": 8},
            # In a maintenance window, one host after the other.
            "nvidia_driver_reboot": "when-needed",
            # A mirror that signs with a key of its own. Without a mirror, NVIDIA's key and no fingerprint.
            "nvidia_driver_repository": "https://mirror.example.org/cuda/repos/ubuntu2404/x86_64",
            "nvidia_driver_repository_key": f"{_secrets}/repository.asc",
            "nvidia_driver_repository_fingerprint": _fingerprint,
            # Counters that tell of other programs' work are for root.
            "nvidia_driver_module_options": {"NVreg_RestrictProfilingToAdminUsers": "1"},
            # The last GPU is cut into seven. A model gets one of the slices by its UUID, as its mig_slice.
            "mig_layout": [{"gpus": [7], "slices": {"1g.10gb": 7}}],
            "container_toolkit_engine": "podman",
            "container_toolkit_repository": "https://mirror.example.org/libnvidia-container/stable/deb/amd64",
            "container_toolkit_repository_key": f"{_secrets}/repository.asc",
            "container_toolkit_repository_fingerprint": _fingerprint,
            "dcgm_exporter_address": "10.0.30.14",
            "dcgm_exporter_certificate": f"{_secrets}/10.0.30.14.crt",
            "dcgm_exporter_private_key": f"file:{_secrets}/10.0.30.14.key",
            "dcgm_exporter_client_ca": f"{_secrets}/ca.crt",
        },
    ),
]
