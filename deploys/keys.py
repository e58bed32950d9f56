"""The keyring alone, to balancers and to nodes without one that are in place. `quench keys push` runs it.

pyinfra inventories/prod.py deploys/keys.py
"""

from pyinfra import host

from quench import Peer, peers, preflight
from roles.haproxy import haproxy_keys
from roles.nginx import nginx_keys, node
from roles.vllm import served

preflight()
if "balancers" in host.groups:
    haproxy_keys([node(peer, served(peer)) for peer in peers("inference")])
elif host.data.get("nginx_clients"):
    nginx_keys(served(Peer(host.name, host.data.dict())))
