"""The operating systems of lab hosts: Debian is real, the others are Debian dressed up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """An operating system that a lab host has or plays.

    Attributes:
        release: the Debian release underneath.
        repository: what NVIDIA calls it in its repository.
        os_release: identity to play; None: it is what it is.
        packages: package manager, `apt` or `dnf`.
    """

    release: str
    repository: str
    os_release: dict[str, str] | None = None
    packages: str = "apt"

    @property
    def simulated(self) -> bool:
        """Whether the host only plays this system."""
        return self.os_release is not None


def _ubuntu(version: str, codename: str) -> dict[str, str]:
    return {
        "PRETTY_NAME": f"Ubuntu {version} LTS (simulated by quench lab)",
        "NAME": "Ubuntu",
        "VERSION_ID": version,
        "VERSION": f"{version} LTS",
        "VERSION_CODENAME": codename,
        "UBUNTU_CODENAME": codename,
        "ID": "ubuntu",
        "ID_LIKE": "debian",
    }


def _rocky(version: str) -> dict[str, str]:
    return {
        "PRETTY_NAME": f"Rocky Linux {version} (simulated by quench lab)",
        "NAME": "Rocky Linux",
        "VERSION_ID": version,
        "VERSION": version,
        "ID": "rocky",
        "ID_LIKE": "rhel centos fedora",
        "PLATFORM_ID": f"platform:el{version.split('.')[0]}",
    }


SYSTEMS = {
    "debian-12": System("bookworm", "debian12"),
    "debian-13": System("trixie", "debian13"),
    "ubuntu-22.04": System("bookworm", "ubuntu2204", _ubuntu("22.04", "jammy")),
    "ubuntu-24.04": System("trixie", "ubuntu2404", _ubuntu("24.04", "noble")),
    "rhel-9": System("bookworm", "rhel9", _rocky("9.6"), "dnf"),
    "rhel-10": System("trixie", "rhel10", _rocky("10.0"), "dnf"),
}


def os_release(system: System) -> str:
    """Text of /etc/os-release for a simulated system."""
    return "".join(f'{key}="{value}"\n' for key, value in (system.os_release or {}).items())
