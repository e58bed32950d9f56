"""Files of the keepalived role."""

from __future__ import annotations

from quench import Flow, Managed, ManagedFile, template
from roles.keepalived.settings import KeepalivedSettings

UNIT = "keepalived.service"
USER = "keepalived"
# curl asks the frontend; setpriv takes keepalived's power from it.
PACKAGES = ["keepalived", "curl", "util-linux"]
CONFIG = "/etc/keepalived/keepalived.conf"
# As the user that the unit has: keepalived 2.2.7 ends itself by a signal where it checks the script of another user.
CHECK = f"setpriv --reuid={USER} --regid={USER} --init-groups keepalived --config-test --use-file={CONFIG}"


def flows(settings: KeepalivedSettings) -> list[Flow]:
    """What the balancers say to each other. VRRP has no secret: whoever may send it gets the addresses."""
    addresses = ", ".join(str(interface.ip) for interface in settings.interfaces)
    why = f"which balancer has {addresses}"
    return [
        Flow("keepalived", "in", (), 0, why, "vrrp", settings.peers),
        Flow("keepalived", "out", (), 0, why, "vrrp", settings.peers),
    ]


def files(settings: KeepalivedSettings) -> list[Managed]:
    """All files of the role."""
    values = {
        "settings": settings,
        "user": USER,
        "config": CONFIG,
        "announced": [interface for interface in settings.interfaces if interface.version == settings.version],
        "others": [interface for interface in settings.interfaces if interface.version != settings.version],
    }
    return [
        ManagedFile(CONFIG, template("keepalived", CONFIG, values), check=CHECK, reloads=UNIT),
        ManagedFile(
            f"/etc/systemd/system/{UNIT}",
            template("keepalived", f"/etc/systemd/system/{UNIT}", values),
            check=f"systemd-analyze verify --man=no {UNIT}",
            restarts=UNIT,
        ),
    ]
