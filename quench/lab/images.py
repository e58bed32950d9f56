"""Host images: a minimal Debian with systemd and sshd, made by mmdebstrap from this machine's mirror."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from quench.lab.machine import Machine, podman, run
from quench.lab.progress import LabError, step
from quench.lab.state import LabHost, cache_folder

# What a freshly installed server has, and nothing that Quench installs. python3-minimal is not among it:
# Quench needs no Python on the host before it brings one.
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "sudo",
    "openssh-server",
    "iproute2",
    "ca-certificates",
    "procps",
    "debian-archive-keyring",
)


# A host with GPUs builds kernel modules with the real dkms, and its simulated programs are in Python.
_GPU_PACKAGES = ("kmod", "dkms", "gcc", "make", "dpkg-dev", "patch", "python3", "openssl", "gnupg")
_RPM_PACKAGES = ("rpm", "dnf", "dnf-plugins-core")

# dpkg works faster without what no test reads, and without waiting for a disk whose content is thrown away.
_DPKG_OPTIONS = (
    "force-unsafe-io",
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
)


def ensure_image(machine: Machine, host: LabHost) -> str:
    """Build the image of a host unless it is there already. Returns its name."""
    release = host.plays.release
    name, packages = host.system, [*PACKAGES, *host.packages]
    if host.prepared:
        # Systems on one release share an image; what makes them differ is done on the host.
        name, packages = f"{release}-{host.plays.packages}", [*packages, *_GPU_PACKAGES]
        if host.plays.packages == "dnf":
            packages += _RPM_PACKAGES
    digest = hashlib.sha256(" ".join((release, *packages, *_DPKG_OPTIONS)).encode()).hexdigest()[:12]
    image = f"localhost/quench-lab/{name}:{digest}"
    if podman(machine, "images", "--quiet", image):
        return image
    folder = cache_folder() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{name}-{digest}.tar"
    if not archive.exists():
        with step(f"building a {name} host image"):
            # Under another name until it is whole: an interrupted build is not taken for a finished one.
            part = archive.with_suffix(f".part-{os.getpid()}.tar")
            try:
                run(
                    "mmdebstrap",
                    "--quiet",
                    "--variant=minbase",
                    f"--include={','.join(packages)}",
                    *(f"--dpkgopt={option}" for option in _DPKG_OPTIONS),
                    release,
                    str(part),
                    apt_mirrors()["debian"],
                )
                part.replace(archive)
            finally:
                part.unlink(missing_ok=True)
    with step(f"importing the {name} host image"):
        podman(machine, "import", "--quiet", str(archive), image)
    return image


def apt_mirrors() -> dict[str, str]:
    """The package archives that this machine uses itself: `debian` and `debian-security`.

    Raises:
        LabError: if apt's sources name none.
    """
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    found: dict[str, str] = {}
    for source in sources:
        if not source.is_file():
            continue
        for line in source.read_text().splitlines():
            words = line.split("#")[0].split()
            if not words or words[0] not in ("deb", "URIs:"):
                continue
            for word in words[1:]:
                name = word.rstrip("/").rsplit("/", 1)[-1]
                if word.startswith("http") and name in ("debian", "debian-security"):
                    found.setdefault(name, word.rstrip("/"))
    if "debian" not in found:
        raise LabError("apt's sources name no Debian archive; set one, such as http://mirror.example.org/debian")
    found.setdefault("debian-security", f"{found['debian']}-security")
    return found
