"""A worked example: three nodes, one for each platform. `quench render` needs no more than this.

    quench ca create secrets/ca
    quench ca issue secrets/ca llm.example.org
    quench check inventories/example.py deploys/inference.py
    quench render inventories/example.py deploys/inference.py

What the nodes have in common stands in group_data/; the names below are groups.
"""

import os

# Where the certificate and its key are, on the machine that runs this. Never in the repository.
_secrets = os.environ.get("QUENCH_SECRETS", "secrets/ca")
_tls = {
    "nginx_server_name": "llm.example.org",
    "nginx_certificate": f"{_secrets}/llm.example.org.crt",
    "nginx_private_key": f"file:{_secrets}/llm.example.org.key",
}

inference = [
    ("node1.example.org", {"platform": "debian-12", **_tls}),
    ("node2.example.org", {"platform": "debian-13", **_tls}),
    (
        "node3.example.org",
        {
            "platform": "ubuntu-24.04",
            **_tls,
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
]
