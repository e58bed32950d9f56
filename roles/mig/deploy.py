"""Bring the MIG layout into place."""

from __future__ import annotations

from pathlib import Path

from pyinfra import host

from quench import Gpus, Problem, Refused, Slices, ask, ensure, install, pinned_packages, role, service, shell_script
from roles.mig.files import CONFIG, LAYOUT, UNIT, files
from roles.mig.settings import MigSettings

_APPLY = Path(__file__).parent / "apply.sh"
_PACKAGE = "nvidia-mig-manager"
# Indices of the GPUs that are cut, whoever has cut them.
_CUT = "nvidia-smi --query-gpu=index,mig.mode.current --format=csv,noheader 2>/dev/null | sed -n 's/, Enabled$//p'"


@role(MigSettings)
def mig(settings: MigSettings, gpus: Gpus) -> Slices:
    """The layout, now and at each boot. Returns the GPUs that are cut."""
    name = host.name
    if gpus.mig is None:
        return Slices()
    if not settings.layout:
        ask(_CUT, lambda answer: [_still_cut(name, line) for line in answer])
        install("mig", [])
        return Slices()
    if not gpus.sliceable:
        what = "is set, and there is a GPU that MIG cannot cut"
        raise Refused([Problem(name, "mig_layout", what, "remove it, or put the others into a host of their own")])
    sliced = settings.sliced(gpus.count)
    if sliced and sliced[-1] >= gpus.count:
        what = f"names GPU {sliced[-1]}, and the host has {gpus.count}"
        raise Refused([Problem(name, "mig_layout", what, f"indices are 0 to {gpus.count - 1}")])
    pinned_packages(f"Install MIG manager {gpus.mig}", {_PACKAGE: gpus.mig}, family=[_PACKAGE], hold_back=[UNIT])
    managed = files(settings, gpus)
    install("mig", managed)
    ensure(
        "Apply the MIG layout",
        f"nvidia-mig-parted assert -f {CONFIG} -c {LAYOUT} >/dev/null 2>&1 || echo differs",
        shell_script(_APPLY, CONFIG, LAYOUT),
    )
    service(UNIT, managed)
    return Slices(sliced)


def _still_cut(host_name: str, gpu: str) -> Problem:
    remedy = "declare how it is cut, or that it shall be whole: mig_layout = [{'gpus': 'all', 'slices': {}}]"
    return Problem(host_name, "mig_layout", f"is empty, and GPU {gpu} is cut into slices", remedy)
