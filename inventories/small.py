"""A worked example of a small site: one balancer, one node, and a standby that has the model loaded as well.

    quench ca create secrets/ca
    quench ca issue secrets/ca llm.example.org
    quench ca issue secrets/ca node1.example.org          # and node2: what the balancer knows each node by
    quench ca issue secrets/ca --client lb1.example.org   # what the nodes know the balancer by
    quench check inventories/small.py deploys/site.py

The balancer needs no GPU: a small virtual machine will do. Without a second one it is what the service hangs on;
medium.py has two. What the hosts have in common stands in group_data/; the names below are groups.
"""

import os

# Where certificates and keys are, on the machine that runs this. Never in the repository.
_secrets = os.environ.get("QUENCH_SECRETS", "secrets/ca")


def _node(name, **more):
    return name, {
        "platform": "debian-12",
        "nginx_server_name": name,
        "nginx_certificate": f"{_secrets}/{name}.crt",
        "nginx_private_key": f"file:{_secrets}/{name}.key",
        # The balancer has the keyring, and is the only one that is let in.
        "nginx_clients": {},
        "nginx_client_zones": ["dmz"],
        "nginx_balancers": ["lb1.example.org"],
        "nginx_balancer_ca": f"{_secrets}/ca.crt",
        **more,
    }


balancers = [
    (
        "lb1.example.org",
        {
            "platform": "debian-12",
            # Nobody shares its address.
            "keepalived_addresses": [],
            "haproxy_certificate": f"{_secrets}/llm.example.org.crt",
            "haproxy_private_key": f"file:{_secrets}/llm.example.org.key",
            "haproxy_node_name": "lb1.example.org",
            "haproxy_node_certificate": f"{_secrets}/lb1.example.org.crt",
            "haproxy_node_private_key": f"file:{_secrets}/lb1.example.org.key",
            "haproxy_node_ca": f"{_secrets}/ca.crt",
        },
    ),
]
inference = [
    _node("node1.example.org"),
    # Gets requests when node1 is down, and while a rollout has it.
    _node("node2.example.org", nginx_standby=True),
]
