"""Bring the exporter of GPU counters into place."""

from __future__ import annotations

from quench import Flow, HostEngine, account, allow, install, pinned_packages, role, service
from roles.dcgm_exporter.files import UNIT, USER, files
from roles.dcgm_exporter.settings import DcgmExporterSettings

_PACKAGE = "datacenter-gpu-manager-exporter"


@role(DcgmExporterSettings)
def dcgm_exporter(settings: DcgmExporterSettings, engine: HostEngine) -> None:
    """The exporter as a sandboxed service that asks the host engine and has no GPU of its own."""
    if engine.exporter is None:
        return
    if settings.address is None:
        install("dcgm_exporter", [])
        return
    allow(Flow("dcgm_exporter", "in", tuple(settings.client_zones), settings.port, "GPU counters"))
    pinned_packages(
        f"Install the DCGM exporter {engine.exporter}",
        {_PACKAGE: engine.exporter},
        family=[_PACKAGE],
        hold_back=[UNIT],
    )
    account(USER, home="/nonexistent")
    managed = files(settings, engine)
    install("dcgm_exporter", managed)
    service(UNIT, managed)
