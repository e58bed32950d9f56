"""Files of the mig role."""

from __future__ import annotations

from quench import Gpus, Managed, ManagedFile, template, to_yaml
from roles.mig.settings import Layout, MigSettings

UNIT = "nvidia-mig-manager.service"
CONFIG = "/etc/nvidia-mig-manager/quench.yaml"
_DROP_IN = f"/etc/systemd/system/{UNIT}.d/quench.conf"
# Name of the one layout in the file.
LAYOUT = "quench"


def files(settings: MigSettings, gpus: Gpus) -> list[Managed]:
    """All files of the role."""
    return [
        ManagedFile(
            CONFIG,
            to_yaml("mig", _layouts(settings, gpus.count)),
            # github.com/NVIDIA/mig-parted: --valid-config needs no GPU.
            check=f"nvidia-mig-parted assert --valid-config -f {CONFIG} -c {LAYOUT}",
        ),
        ManagedFile(_DROP_IN, template("mig", _DROP_IN, {"config": CONFIG, "layout": LAYOUT})),
    ]


def _layouts(settings: MigSettings, count: int) -> dict[str, object]:
    whole = settings.undeclared(count)
    # mig-parted leaves a GPU that no entry names as it is: cut, if a former layout has cut it.
    every = [*settings.layout, *([Layout(gpus=whole, slices={})] if whole else [])]
    layouts = [
        {"devices": layout.gpus, "mig-enabled": bool(layout.slices), "mig-devices": dict(layout.slices)}
        for layout in every
    ]
    return {"version": "v1", "mig-configs": {LAYOUT: layouts}}
