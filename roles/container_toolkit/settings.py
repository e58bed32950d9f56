"""Settings of the container_toolkit role."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, JsonValue
from typing_extensions import override

from quench import openpgp
from quench.problems import Problem
from quench.settings import EVERY_PLATFORM, Platform, RoleSettings

# github.com/NVIDIA/libnvidia-container, branch gh-pages: file gpgkey.
FINGERPRINT = "C95B321B61E88C1809C4F759DDCAE044F796ECB0"
# CDI came with docker 25 and podman 4.1. Debian 12 has docker 20.10, and the RHEL family has none; Ubuntu 22.04 has
# podman 3.4: packages.debian.org/docker.io, packages.ubuntu.com/podman
_NO_CDI = {
    ("docker", "debian-12"): "docker.io of Debian 12 knows no CDI",
    ("docker", "rhel-9"): "RHEL has no docker",
    ("docker", "rhel-10"): "RHEL has no docker",
    ("podman", "ubuntu-22.04"): "podman of Ubuntu 22.04 knows no CDI",
}


class ContainerToolkitSettings(RoleSettings):
    """GPUs for containers, by CDI alone: the older hook loses its GPUs with the next `systemctl daemon-reload`."""

    prefix: ClassVar[str] = "container_toolkit"
    platforms: ClassVar[tuple[Platform, ...]] = EVERY_PLATFORM

    engine: Literal["none", "podman", "docker"] = Field(
        default="none",
        description="Container engine of the host. `none`: nothing is installed. The engines' own units need none.",
    )
    source_zones: list[str] = Field(
        default=["management"], description="Zones in which the mirror of the toolkit's repository is."
    )
    repository: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s@]+[^/\s@]$",
        repr=False,
        description="Mirror of NVIDIA's container toolkit repository. Unset: NVIDIA's own.",
        examples=["https://mirror.example.org/libnvidia-container/stable/deb/amd64"],
    )
    repository_key: str = Field(
        default="",
        description="File, where the run starts, with the repository's public key: NVIDIA's `gpgkey`.",
        examples=["keys/libnvidia-container.asc"],
    )
    repository_fingerprint: str = Field(
        default=FINGERPRINT, pattern=r"^[0-9A-F]{40}$", description="Fingerprint that the key must have."
    )
    docker_settings: dict[str, JsonValue] = Field(
        default={},
        description="What else /etc/docker/daemon.json says. The role adds CDI, and no runtime of NVIDIA's.",
        examples=[{"log-driver": "journald"}],
    )

    @override
    def problems(self, host: str) -> Iterator[Problem]:
        if self.engine == "none":
            return
        if what := _NO_CDI.get((self.engine, self.platform)):
            other = "podman" if self.engine == "docker" else "docker"
            yield Problem(host, "container_toolkit_engine", what, f"set container_toolkit_engine = '{other}'")
        for name in ("runtimes", "default-runtime"):
            if name in self.docker_settings:
                what = f"{name} brings back the hook that loses GPUs"
                yield Problem(host, "container_toolkit_docker_settings", what, f"remove {name}; CDI needs no runtime")
        yield from openpgp.key_problems(host, "container_toolkit", self.repository_key, self.repository_fingerprint)

    def key_text(self) -> str:
        """The repository's public key, in ASCII armor."""
        return Path(self.repository_key).expanduser().read_text()
