"""What holds for every host of every inventory in this folder."""

from quench import transport

# Host keys must be known: `ssh-keyscan` into a file, compared with what the console shows. "accept-new", which
# is pyinfra's default, would trust whoever answers first.
ssh_strict_host_key_checking = "yes"

# Small packets go out at once, which makes a run several times faster.
ssh_paramiko_connect_kwargs = transport.CONNECT_KWARGS

# sshd drops connections for a while after failed logins, and while it is started anew.
ssh_connect_retries = 3
ssh_connect_retry_min_delay = 3.0
ssh_connect_retry_max_delay = 6.0

# --- firewall: the zones of the house --------------------------------------------------------------------------

# Each role declares what it calls and who may call it, by the names of zones; nothing else passes, in or out. `quench
# flows` prints the whole matrix. A zone that the house does not have is an empty list. These are documentation
# networks (RFC 5737, RFC 3849): put in your own.
firewall_zones = {
    "management": ["192.0.2.0/26", "2001:db8:0:1::/64"],
    "app": ["192.0.2.64/26", "2001:db8:0:2::/64"],
    "dmz": ["192.0.2.128/26"],
    "inference": ["10.0.30.0/24", "2001:db8:0:4::/64"],
    "storage": ["198.51.100.0/25"],
    "monitoring": ["198.51.100.128/25"],
}

# Administrators, and the machine that runs Quench, log in from here. A run from elsewhere is refused.
firewall_ssh_zones = ["management"]

# What passes for services that are not Quench's business: no role declares it.
# firewall_flows = [{"direction": "in", "zones": ["app"], "port": 5432, "why": "queries of the applications"}]

# --- hardening: SSH, passwords, kernel, audit ------------------------------------------------------------------

# The defaults are the strict ones. What a host cannot do with is relaxed by name and with a reason, which stands in
# the rendered file. Anything that could cut the controller off goes back by itself unless a new login works.
# hardening_relaxations = {"tcp-forwarding": "jump host of the management zone, change 4711"}
hardening_ssh_users = []
