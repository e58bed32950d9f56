"""Balancers: one address for all nodes of the group `inference`.

pyinfra inventories/prod.py deploys/balancer.py --limit balancers --serial
"""

from pyinfra import host

from quench import peers, preflight
from roles.acme import acme
from roles.base import base
from roles.firewall import firewall, firewall_ahead
from roles.haproxy import haproxy
from roles.hardening import hardening
from roles.keepalived import keepalived
from roles.logrotate import logrotate
from roles.nginx import node
from roles.vllm import served

preflight()
firewall_ahead()
base()
certificate = acme("haproxy.service")
haproxy_logs = haproxy([node(peer, served(peer)) for peer in peers("inference")], certificate)
if host.data.get("keepalived_addresses"):
    keepalived()
sudo_logs = hardening()
logrotate(haproxy_logs, sudo_logs)
firewall()
