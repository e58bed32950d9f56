"""Files of the nvidia_driver role."""

from __future__ import annotations

from quench import Managed, ManagedFile, template
from roles.nvidia_driver.compatibility import DriverSet, driver_set, fabric_of, table
from roles.nvidia_driver.settings import NvidiaDriverSettings

PERSISTENCED = "nvidia-persistenced.service"
FABRIC_MANAGER = "nvidia-fabricmanager.service"
MODPROBE = "/etc/modprobe.d/quench-nvidia.conf"
APT_SOURCES = "/etc/apt/sources.list.d"

# NVIDIA's names of the platforms, and of x86-64, in the paths of its repositories: guide, Network Repository.
_DISTRO = {
    "debian-12": "debian12",
    "debian-13": "debian13",
    "ubuntu-22.04": "ubuntu2204",
    "ubuntu-24.04": "ubuntu2404",
    "rhel-9": "rhel9",
    "rhel-10": "rhel10",
}
_NVIDIA = "https://developer.download.nvidia.com/compute/cuda/repos"
_KEY = "/etc/apt/keyrings/quench-nvidia.asc"
_RPM_KEY = "/etc/pki/rpm-gpg/RPM-GPG-KEY-quench-nvidia"


def chosen(settings: NvidiaDriverSettings) -> DriverSet:
    """The set that the settings ask for."""
    return driver_set(settings.gpus, settings.version, settings.platform)


# All packages of a driver, whatever part of it they are.
FAMILY = {
    "apt": [
        "nvidia-*",
        "libnvidia-*",
        "libcuda1",
        "libnvcuvid1",
        "cuda-drivers*",
        "libnvsdm*",
        "firmware-nvidia-*",
        "linux-modules-nvidia-*",
        "linux-objects-nvidia-*",
        "linux-signatures-nvidia-*",
        "xserver-xorg-video-nvidia*",
    ],
    "dnf": ["*nvidia*", "libnvsdm*", "cuda-drivers*"],
}


def build_packages(settings: NvidiaDriverSettings) -> list[str]:
    """What DKMS builds with. Headers of the running kernel and of the next: the metapackages would bring a new one."""
    if settings.family == "rhel":
        return ["kernel-devel-$(uname -r)", "kernel-devel-$(next-kernel)", "dkms"]
    # Ubuntu has ib_umad and mlx5_ib, which the fabric manager of NVLink 5 needs, in a package of its own.
    modules = (
        ["linux-modules-extra-$(uname -r)"]
        if (settings.family, fabric_of(settings.gpus)) == ("ubuntu", "nvlink5")
        else []
    )
    return ["linux-headers-$(uname -r)", "linux-headers-$(next-kernel)", *modules, "dkms", "python3"]


def fabric_packages(settings: NvidiaDriverSettings) -> list[str]:
    """What the switches between the GPUs need of the distribution itself."""
    fabric = fabric_of(settings.gpus)
    if fabric is None:
        return []
    parts = table().fabrics[fabric]
    return parts.rpm if settings.family == "rhel" else parts.deb


def source_file(settings: NvidiaDriverSettings, folder: str) -> str:
    """The file that tells the package manager of the repository."""
    if settings.family == "rhel":
        return "/etc/yum.repos.d/quench-nvidia.repo"
    return f"{folder}/quench-nvidia.sources"


def own_versions(wanted: DriverSet) -> dict[str, str]:
    """Versions, by name or pattern, of what comes from the same repository and is not numbered like the driver."""
    release = wanted.release
    versions = {
        "datacenter-gpu-manager-exporter": release.exporter,
        "datacenter-gpu-manager-4-*": release.dcgm,
        "nvidia-mig-manager": release.mig,
        "nvlsm": release.nvlsm,
    }
    return {name: version for name, version in versions.items() if version is not None}


def sources(settings: NvidiaDriverSettings, folder: str = APT_SOURCES) -> list[Managed]:
    """The repository, its key and the pins: in place before any package is installed.

    Args:
        folder: where apt reads its sources.
    """
    wanted = chosen(settings)
    values = {
        "settings": settings,
        "set": wanted,
        "own_versions": own_versions(wanted),
        "family": FAMILY["dnf" if settings.family == "rhel" else "apt"],
        "repository": settings.repository or f"{_NVIDIA}/{_DISTRO[settings.platform]}/x86_64",
        "key": _RPM_KEY if settings.family == "rhel" else _KEY,
        "release": {"debian-12": "bookworm", "debian-13": "trixie"}.get(settings.platform, ""),
    }
    if settings.family == "rhel":
        return [
            ManagedFile(_RPM_KEY, settings.key_text()),
            ManagedFile(
                "/etc/yum.repos.d/quench-nvidia.repo",
                template("nvidia_driver", "/etc/yum.repos.d/quench-nvidia.repo", values),
            ),
        ]
    managed: list[Managed] = [
        ManagedFile(
            "/etc/apt/preferences.d/quench-nvidia",
            template("nvidia_driver", "/etc/apt/preferences.d/quench-nvidia", values),
            # A record that apt cannot read stops every use of apt.
            check="apt-cache policy >/dev/null",
        ),
        ManagedFile(
            source_file(settings, folder),
            template("nvidia_driver", "/etc/apt/sources.list.d/quench-nvidia.sources", values),
        ),
    ]
    if not settings.distro:
        managed.append(ManagedFile(_KEY, settings.key_text()))
    return managed


def files(settings: NvidiaDriverSettings) -> list[Managed]:
    """All files of the role but the package sources."""
    wanted = chosen(settings)
    values = {"settings": settings, "set": wanted}
    return [
        ManagedFile(MODPROBE, template("nvidia_driver", MODPROBE, values)),
        ManagedFile(
            "/etc/modules-load.d/quench-nvidia.conf",
            template("nvidia_driver", "/etc/modules-load.d/quench-nvidia.conf", values),
        ),
        ManagedFile(
            f"/etc/systemd/system/{PERSISTENCED}",
            template("nvidia_driver", f"/etc/systemd/system/{PERSISTENCED}", values),
            check=f"systemd-analyze verify --man=no {PERSISTENCED}",
            restarts=PERSISTENCED,
        ),
    ]
