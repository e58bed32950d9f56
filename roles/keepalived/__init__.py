"""Virtual addresses that one of several balancers has."""

from roles.keepalived.deploy import keepalived
from roles.keepalived.files import files
from roles.keepalived.settings import KeepalivedSettings

__all__ = ["KeepalivedSettings", "files", "keepalived"]
