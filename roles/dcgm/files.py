"""Files of the dcgm role."""

from __future__ import annotations

from quench import Gpus, Managed, ManagedFile, template
from roles.dcgm.settings import DcgmSettings

UNIT = "nvidia-dcgm.service"


def packages_of(gpus: Gpus) -> dict[str, str]:
    """Version by package name. The parts for the driver's CUDA alone: `-cuda-all` would bring three of them.

    The proprietary parts are recommendations of the core, and without them there are no profiling counters.
    """
    assert gpus.dcgm is not None
    cuda = gpus.cuda.partition(".")[0]
    parts = ["core", f"cuda{cuda}", "proprietary", f"proprietary-cuda{cuda}"]
    return {f"datacenter-gpu-manager-4-{part}": gpus.dcgm for part in parts}


def files(settings: DcgmSettings, gpus: Gpus) -> list[Managed]:
    """All files of the role."""
    values = {"settings": settings, "gpus": gpus}
    return [
        ManagedFile(
            f"/etc/systemd/system/{UNIT}",
            template("dcgm", f"/etc/systemd/system/{UNIT}", values),
            check=f"systemd-analyze verify --man=no {UNIT}",
            restarts=UNIT,
        )
    ]
