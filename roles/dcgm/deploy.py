"""Bring DCGM's host engine into place."""

from __future__ import annotations

from quench import Gpus, HostEngine, install, pinned_packages, role, service
from roles.dcgm.files import UNIT, files, packages_of
from roles.dcgm.settings import DcgmSettings


@role(DcgmSettings)
def dcgm(settings: DcgmSettings, gpus: Gpus) -> HostEngine:
    """The host engine of the set's version. Where the distribution's own driver is, there is none."""
    if gpus.dcgm is None:
        return HostEngine()
    pinned_packages(
        f"Install DCGM {gpus.dcgm}", packages_of(gpus), family=["datacenter-gpu-manager-4-*"], hold_back=[UNIT]
    )
    managed = files(settings, gpus)
    install("dcgm", managed)
    service(UNIT, managed)
    return HostEngine(f"127.0.0.1:{settings.port}", gpus.exporter)
