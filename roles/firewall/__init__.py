"""The host's firewall: what no role declares does not pass."""

from roles.firewall.deploy import firewall, firewall_ahead
from roles.firewall.files import files
from roles.firewall.settings import FirewallSettings

__all__ = ["FirewallSettings", "files", "firewall", "firewall_ahead"]
