"""A worked example: two balancers with one address, and four nodes behind them.

    quench ca create secrets/ca
    quench ca issue secrets/ca llm.example.org
    quench ca issue secrets/ca node1.example.org          # and so on: what the balancers know each node by
    quench ca issue secrets/ca --client lb1.example.org   # and lb2: what the nodes know each balancer by
    quench check inventories/medium.py deploys/inference.py --limit inference
    quench check inventories/medium.py deploys/balancer.py --limit balancers

What the hosts have in common stands in group_data/; the names below are groups.
"""

import os

# Where certificates and keys are, on the machine that runs this. Never in the repository.
_secrets = os.environ.get("QUENCH_SECRETS", "secrets/ca")
_balancers = ["lb1.example.org", "lb2.example.org"]


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
    }


def _node(name, platform, **more):
    return name, {
        "platform": platform,
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
inference = [
    _node("node1.example.org", "debian-12"),
    _node("node2.example.org", "debian-12"),
    _node("node3.example.org", "ubuntu-24.04"),
    # Warm: its model is loaded, and it gets requests when none of the others is up.
    _node("node4.example.org", "debian-13", nginx_standby=True),
]
