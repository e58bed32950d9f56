"""Files of the mig role."""

from __future__ import annotations

from quench import Managed, ManagedFile, template, to_yaml
from roles.mig.settings import MigSettings

UNIT = "nvidia-mig-manager.service"
CONFIG = "/etc/nvidia-mig-manager/quench.yaml"
_DROP_IN = f"/etc/systemd/system/{UNIT}.d/quench.conf"
# Name of the one layout in the file.
LAYOUT = "quench"


def files(settings: MigSettings) -> list[Managed]:
    """All files of the role."""
    return [
        ManagedFile(
            CONFIG,
            to_yaml("mig", _layouts(settings)),
            # github.com/NVIDIA/mig-parted: --valid-config needs no GPU.
            check=f"nvidia-mig-parted assert --valid-config -f {CONFIG} -c {LAYOUT}",
        ),
        ManagedFile(_DROP_IN, template("mig", _DROP_IN, {"config": CONFIG, "layout": LAYOUT})),
    ]


def _layouts(settings: MigSettings) -> dict[str, object]:
    layouts = [
        {"devices": layout.gpus, "mig-enabled": bool(layout.slices), "mig-devices": dict(layout.slices)}
        for layout in settings.layout
    ]
    return {"version": "v1", "mig-configs": {LAYOUT: layouts}}
