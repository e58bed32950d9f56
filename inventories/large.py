"""A worked example of a large site: two balancers, and a pool of nodes for each of three models.

    quench ca create secrets/ca
    quench ca issue secrets/ca llm.example.org
    quench ca issue secrets/ca node1.example.org          # and so on: what the balancers know each node by
    quench ca issue secrets/ca --client lb1.example.org   # and lb2: what the nodes know each balancer by
    quench check inventories/large.py deploys/site.py
    quench flows inventories/large.py deploys/site.py     # who may call whom, over all zones

The groups `chat`, `code` and `search` are for --limit: `quench rollout inventories/large.py --limit code`. What all
hosts have in common stands in group_data/; example.py has a node with NVIDIA's parts.
"""

import os

# Where certificates and keys are, on the machine that runs this. Never in the repository.
_secrets = os.environ.get("QUENCH_SECRETS", "secrets/ca")
_models = "https://mirror.example.org/models"
_balancers = ["lb1.example.org", "lb2.example.org"]


def _model(name, revision, sha256, gpus, **more):
    source = f"{_models}/{name}/{revision}"
    return {name: {"port": 8000, "gpus": gpus, "revision": revision, "source": source, "sha256": sha256, **more}}


# The sums of your mirror's SHA256SUMS stand in place of these.
_llama = _model("llama-3.3-70b", "2026-10-01", "0" * 64, [0, 1, 2, 3], max_model_len=65536, concurrent=128)
_qwen = _model("qwen-coder", "7", "1" * 64, [0, 1], max_model_len=32768)
_embedder = _model("bge-m3", "3", "2" * 64, [0], kind="embed", max_model_len=8192, concurrent=512)


def _balancer(name, platform, address):
    return name, {
        "platform": platform,
        "keepalived_address": address,
        "haproxy_certificate": f"{_secrets}/llm.example.org.crt",
        "haproxy_private_key": f"file:{_secrets}/llm.example.org.key",
        "haproxy_node_name": name,
        "haproxy_node_certificate": f"{_secrets}/{name}.crt",
        "haproxy_node_private_key": f"file:{_secrets}/{name}.key",
        "haproxy_node_ca": f"{_secrets}/ca.crt",
        # A conversation goes on at the node that has its beginning in the cache.
        "haproxy_balance": "session",
    }


def _node(name, platform, models, **more):
    return name, {
        "platform": platform,
        "vllm_models": models,
        "nginx_server_name": name,
        "nginx_certificate": f"{_secrets}/{name}.crt",
        "nginx_private_key": f"file:{_secrets}/{name}.key",
        # The balancers have the keyring, and are the only ones that are let in.
        "nginx_clients": {},
        "nginx_client_zones": ["dmz"],
        "nginx_balancers": _balancers,
        "nginx_balancer_ca": f"{_secrets}/ca.crt",
        **more,
    }


balancers = [
    _balancer("lb1.example.org", "debian-12", "192.0.2.131"),
    _balancer("lb2.example.org", "debian-13", "192.0.2.132"),
]
chat = [
    _node("node1.example.org", "debian-12", _llama),
    _node("node2.example.org", "debian-12", _llama),
    _node("node3.example.org", "ubuntu-24.04", _llama),
    # Warm: its model is loaded, and it gets requests when none of the others is up.
    _node("node4.example.org", "debian-13", _llama, nginx_standby=True),
]
code = [
    _node("node5.example.org", "debian-13", _qwen),
    # A new revision proves itself with a tenth of the requests before the other node gets it.
    _node("node6.example.org", "debian-13", _model("qwen-coder", "8", "3" * 64, [0, 1]), nginx_weight=10),
]
search = [
    _node("node7.example.org", "debian-12", _embedder),
    _node("node8.example.org", "debian-12", _embedder),
]
inference = [*chat, *code, *search]
