"""Balancers: one address, one keyring, and a pool of nodes for each model.

Which nodes there are, and what they serve, is read from the group `inference`. Each key belongs to the role that its
prefix names; docs/reference/ has all keys of each role with their types and defaults.
"""

from quench.keyring import load as _keyring

# --- base: what every host has ---------------------------------------------------------------------------------

base_admin_user = "ops"
base_admin_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleEx ops@example.org"]
base_ntp_servers = ["ntp1.example.org", "ntp2.example.org"]

# --- firewall: where the host is, and what is relaxed -----------------------------------------------------------

firewall_zone = "dmz"
firewall_relaxations = {"world-out": "packages come from their publishers' servers"}

# --- haproxy: the one address ----------------------------------------------------------------------------------

haproxy_server_name = "llm.example.org"

# The keyring: hashes of keys, with their days and limits. `quench keys add` makes a key and shows it once, `quench keys
# push` brings the keyring to all hosts within seconds: docs/guides/keys.md. A key that is past its day is refused,
# without a run. The path is from the checkout's top folder.
haproxy_clients = _keyring("inventories/keyring.yaml")

# --- keepalived: the address that clients call ------------------------------------------------------------------

# One of the balancers has it, as long as its HAProxy answers. Without keepalived_addresses there is none, and a
# balancer is called by its own address.
keepalived_addresses = ["192.0.2.130/26"]
keepalived_interface = "eth0"
keepalived_router_id = 51
keepalived_balancers = ["192.0.2.131", "192.0.2.132"]
keepalived_check_server_name = "llm.example.org"

# --- logrotate: how long logs are kept -------------------------------------------------------------------------

# Six years, where HIPAA makes the access log a record (45 CFR 164.316(b)(2)(i)). Shorter where it does not.
logrotate_keep_days = 2190
