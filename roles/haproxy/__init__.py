"""HAProxy as the one address of a fleet."""

from roles.haproxy.deploy import haproxy, haproxy_keys
from roles.haproxy.files import files
from roles.haproxy.settings import HaproxySettings

__all__ = ["HaproxySettings", "files", "haproxy", "haproxy_keys"]
