"""Files of the container_toolkit role."""

from __future__ import annotations

import json

from quench import Gpus, Managed, ManagedFile, template
from roles.container_toolkit.settings import ContainerToolkitSettings

REFRESH = "nvidia-cdi-refresh.service"
# CDI alone needs no more than this one: no runtime hook. container-toolkit, install guide.
PACKAGE = "nvidia-container-toolkit-base"
FAMILY = ["nvidia-container-toolkit*", "libnvidia-container*"]
# Debian's podman comes with its programming interface on a socket, and a timer that moves images. [SOC2 CC6.8]
UNWANTED = ["podman.socket", "podman.service", "podman-auto-update.timer", "podman-auto-update.service"]
_NVIDIA = "https://nvidia.github.io/libnvidia-container/stable"
_PIN = "/etc/apt/preferences.d/quench-container-toolkit"
_SOURCE = "/etc/apt/sources.list.d/quench-container-toolkit.sources"
_REPO = "/etc/yum.repos.d/quench-container-toolkit.repo"
_ENVIRONMENT = "/etc/nvidia-container-toolkit/nvidia-cdi-refresh.env"
_KEY = "/etc/apt/keyrings/quench-container-toolkit.asc"
_RPM_KEY = "/etc/pki/rpm-gpg/RPM-GPG-KEY-quench-container-toolkit"
# Version 0.7 of the CDI specification, the toolkit's default, needs podman 5.1. Debian 12 has 4.3, and Ubuntu 24.04 has
# 4.9. container-toolkit, release notes of 1.19.1, known issues.
_OLD_PODMAN = ("debian-12", "ubuntu-24.04")


def engine_packages(settings: ContainerToolkitSettings) -> list[str]:
    """The container engine itself."""
    return ["podman"] if settings.engine == "podman" else ["docker.io"]


def sources(settings: ContainerToolkitSettings, gpus: Gpus, folder: str) -> list[Managed]:
    """The repository, its key and the pin.

    Args:
        folder: where apt reads its sources.
    """
    rhel = settings.platform.startswith("rhel")
    values = {
        "repository": settings.repository or (f"{_NVIDIA}/rpm/x86_64" if rhel else f"{_NVIDIA}/deb/amd64"),
        "key": _RPM_KEY if rhel else _KEY,
        "version": gpus.toolkit,
        "family": FAMILY,
    }
    if rhel:
        return [
            ManagedFile(_RPM_KEY, settings.key_text()),
            ManagedFile(_REPO, template("container_toolkit", _REPO, values)),
        ]
    # Before quench-nvidia, whose patterns fit these names as well: the first record counts.
    return [
        ManagedFile(_KEY, settings.key_text()),
        ManagedFile(_PIN, template("container_toolkit", _PIN, values), check="apt-cache policy >/dev/null"),
        ManagedFile(f"{folder}/quench-container-toolkit.sources", template("container_toolkit", _SOURCE, values)),
    ]


def files(settings: ContainerToolkitSettings) -> list[Managed]:
    """All files of the role but the package sources."""
    values = {"old_podman": settings.engine == "podman" and settings.platform in _OLD_PODMAN}
    managed: list[Managed] = [
        ManagedFile(_ENVIRONMENT, template("container_toolkit", _ENVIRONMENT, values), restarts=REFRESH)
    ]
    if settings.engine == "docker":
        # dockerd refuses keys that it does not know, and so there is no header.
        content = {**settings.docker_settings, "features": {"cdi": True}}
        managed.append(
            ManagedFile(
                "/etc/docker/daemon.json",
                json.dumps(content, indent=2) + "\n",
                check="dockerd --validate --config-file /etc/docker/daemon.json",
                restarts="docker.service",
            )
        )
    return managed
