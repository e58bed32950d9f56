"""Bring the MIG layout into place."""

from __future__ import annotations

from pathlib import Path

from pyinfra import host

from quench import Gpus, Problem, Refused, Slices, ensure, install, pinned_packages, role, service, shell_script
from roles.mig.files import CONFIG, LAYOUT, UNIT, files
from roles.mig.settings import MigSettings

_APPLY = Path(__file__).parent / "apply.sh"
_PACKAGE = "nvidia-mig-manager"


@role(MigSettings)
def mig(settings: MigSettings, gpus: Gpus) -> Slices:
    """The layout, now and at each boot. Returns the GPUs that are cut."""
    if gpus.mig is None:
        return Slices()
    if not settings.layout:
        install("mig", [])
        return Slices()
    sliced = settings.sliced(gpus.count)
    if sliced and sliced[-1] >= gpus.count:
        what = f"names GPU {sliced[-1]}, and the host has {gpus.count}"
        raise Refused([Problem(host.name, "mig_layout", what, f"indices are 0 to {gpus.count - 1}")])
    pinned_packages(f"Install MIG manager {gpus.mig}", {_PACKAGE: gpus.mig}, family=[_PACKAGE], hold_back=[UNIT])
    managed = files(settings)
    install("mig", managed)
    ensure(
        "Apply the MIG layout",
        f"nvidia-mig-parted assert -f {CONFIG} -c {LAYOUT} >/dev/null 2>&1 || echo differs",
        shell_script(_APPLY, CONFIG, LAYOUT),
    )
    service(UNIT, managed)
    return Slices(sliced)
