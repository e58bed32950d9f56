"""Bring NVIDIA's container toolkit into place."""

from __future__ import annotations

from pathlib import Path

from quench import (
    Gpus,
    allow,
    confirm,
    download,
    ensure,
    install,
    keep_off,
    packages,
    pinned_packages,
    role,
    service,
    shell_script,
)
from roles.container_toolkit.files import FAMILY, PACKAGE, REFRESH, UNWANTED, engine_packages, files, sources
from roles.container_toolkit.settings import ContainerToolkitSettings

_CDI = Path(__file__).parent / "cdi.sh"


@role(ContainerToolkitSettings)
def container_toolkit(
    settings: ContainerToolkitSettings, gpus: Gpus, apt_sources: str = "/etc/apt/sources.list.d"
) -> None:
    """A container engine, and the CDI specification of the host's GPUs, written anew whenever they change."""
    if gpus.toolkit is None:
        return
    if settings.engine == "none":
        install("container_toolkit-sources", [])
        install("container_toolkit", [])
        return
    allow(download("container_toolkit", settings.repository, settings.source_zones, "NVIDIA's container toolkit"))
    install("container_toolkit-sources", sources(settings, gpus, apt_sources))
    pinned_packages(f"Install the NVIDIA container toolkit {gpus.toolkit}", {PACKAGE: gpus.toolkit}, family=FAMILY)
    packages(engine_packages(settings), hold_back=UNWANTED)
    keep_off("Keep podman's interface and its own updates off", UNWANTED)
    managed = files(settings)
    install("container_toolkit", managed)
    if settings.engine == "docker":
        service("docker.service", managed)
    wrong = shell_script(_CDI, gpus.driver)
    ensure(
        "Describe the GPUs for containers",
        wrong,
        f"systemctl enable --quiet --now nvidia-cdi-refresh.path && systemctl restart {REFRESH}",
    )
    confirm("Verify the GPUs of containers", wrong)
