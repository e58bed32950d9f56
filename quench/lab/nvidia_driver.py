"""The driver's packages in each distribution: names and dependencies as NVIDIA has them, contents SIMULATED."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quench.lab.nvidia_package import File, Package, program, units

DRIVERS = ("580.95.05", "580.126.20", "595.71.05", "615.71.09")
# From 615 on there are no packages with the proprietary module.
_LAST_PROPRIETARY = 610
# From 590 on Ubuntu's packages carry no branch in their names, and nvidia-smi has no package of its own. Which one has
# it on Ubuntu is not known here; it is the library's.
_FIRST_WITHOUT_BRANCH = 590
# From 595 on Debian's nvidia-driver-cuda has nvidia-smi in it.
_FIRST_WITH_SMI = 595
_CUDA = {580: 13000, 595: 13020, 615: 13030}
_DAEMON = "nvidia-persistenced"
_OPEN, _PROPRIETARY = "Dual MIT/GPL", "NVIDIA"


def driver_set(distro: str, version: str) -> list[Package]:
    """All packages of one driver version.

    Args:
        distro: a distribution of NVIDIA's repository, or `debian` and `ubuntu`, whose releases have the same packages.
    """
    branch = int(version.split(".")[0])
    if distro.startswith("rhel"):
        driver = _Driver(version, f"1.el{distro.removeprefix('rhel')}", "/usr/lib64", epoch=3)
        found = _rhel(driver)
    elif distro.startswith("ubuntu"):
        release = "0ubuntu1" if branch < _FIRST_WITHOUT_BRANCH else "1ubuntu1"
        driver = _Driver(version, release, "/usr/lib/x86_64-linux-gnu")
        found = _ubuntu(driver)
    else:
        driver = _Driver(version, "1", "/usr/lib/x86_64-linux-gnu")
        found = _debian(driver)
    return [*found, *_fabric(driver)]


@dataclass(frozen=True)
class _Driver:
    """One version for one distribution. `epoch` is that of the driver itself, not of what stands around it."""

    version: str
    release: str
    libraries: str
    epoch: int = 0

    @property
    def branch(self) -> int:
        return int(self.version.split(".")[0])

    @property
    def proprietary(self) -> bool:
        return self.branch <= _LAST_PROPRIETARY

    def library(self, name: str) -> dict[str, File]:
        return {
            f"{self.libraries}/{name}.so.{self.version}": File(f"{name}.so"),
            f"{self.libraries}/{name}.so.1": File(link=f"{name}.so.{self.version}"),
        }

    def part(
        self,
        name: str,
        *depends: str,
        files: dict[str, File] | None = None,
        conflicts: tuple[str, ...] = (),
        provides: tuple[str, ...] = (),
        epoch: int | None = None,
    ) -> Package:
        return Package(
            name,
            self.version,
            self.release,
            self.epoch if epoch is None else epoch,
            depends,
            provides,
            conflicts,
            files or {},
            words={"VERSION": self.version, "CUDA": str(_CUDA[self.branch])},
        )

    def daemon(
        self, name: str, library: str, conflicts: tuple[str, ...] = (), provides: tuple[str, ...] = ()
    ) -> Package:
        unit = f"{_DAEMON}.service"
        part = self.part(
            name, f"{library}=", files=program(_DAEMON) | units(unit), conflicts=conflicts, provides=provides
        )
        return replace(part, units=(unit,), users=(_DAEMON,))

    def common(
        self, name: str, *depends: str, conflicts: tuple[str, ...] = (), provides: tuple[str, ...] = ()
    ) -> Package:
        note = File(text="# SIMULATED: NVIDIA's package has module options here.\n")
        files = {"/etc/modprobe.d/nvidia-simulated.conf": note}
        return self.part(name, *depends, files=files, conflicts=conflicts, provides=provides)

    def dkms(
        self, name: str, licence: str, common: str, conflicts: tuple[str, ...], provides: tuple[str, ...] = ()
    ) -> Package:
        files = {
            f"/usr/src/nvidia-{self.version}/{source}": File(source) for source in ("dkms.conf", "Makefile", "module.S")
        }
        part = self.part(name, f"{common}=", "dkms", files=files, conflicts=conflicts, provides=provides)
        return replace(part, dkms=self.version, words={**part.words, "LICENSE": licence})


def _debian(driver: _Driver) -> list[Package]:
    kernel = ("nvidia-kernel-open-dkms", "nvidia-kernel-dkms")
    depends = ("libcuda1=", "libnvidia-ml1=", f"{_DAEMON}=")
    if driver.branch >= _FIRST_WITH_SMI:
        smi = [driver.part("nvidia-driver-cuda", *depends, files=program("nvidia-smi"), conflicts=("nvidia-smi",))]
    else:
        smi = [
            driver.part("nvidia-smi", "libnvidia-ml1=", files=program("nvidia-smi")),
            driver.part("nvidia-driver-cuda", *depends, "nvidia-smi="),
        ]
    found = [
        *smi,
        # No role names this one: it comes, goes and is pinned with the one that needs it.
        driver.part("libnvidia-ptxjitcompiler1"),
        driver.part("libcuda1", "libnvidia-ptxjitcompiler1=", files=driver.library("libcuda")),
        driver.part("libnvidia-ml1", files=driver.library("libnvidia-ml")),
        driver.daemon(_DAEMON, "libnvidia-ml1"),
        driver.common("nvidia-kernel-support"),
        driver.dkms(kernel[0], _OPEN, "nvidia-kernel-support", (kernel[1],)),
        driver.part("nvidia-open", "nvidia-driver-cuda=", f"{kernel[0]}="),
    ]
    if driver.proprietary:
        found += [
            driver.dkms(kernel[1], _PROPRIETARY, "nvidia-kernel-support", (kernel[0],)),
            driver.part("cuda-drivers", "nvidia-driver-cuda=", f"{kernel[1]}="),
        ]
    return found


def _rhel(driver: _Driver) -> list[Package]:
    kernel, libraries, common = (
        ("kmod-nvidia-open-dkms", "kmod-nvidia-latest-dkms"), "nvidia-driver-cuda-libs", "nvidia-kmod-common"
    )  # fmt: skip
    found = [
        driver.part(libraries, files=driver.library("libcuda") | driver.library("libnvidia-ml")),
        driver.part("nvidia-driver-cuda", f"{libraries}=", f"{_DAEMON}=", files=program("nvidia-smi")),
        driver.common(common, "nvidia-kmod="),
        driver.daemon(_DAEMON, libraries),
        driver.dkms(kernel[0], _OPEN, common, (kernel[1],), ("nvidia-kmod",)),
    ]
    if driver.proprietary:
        found.append(driver.dkms(kernel[1], _PROPRIETARY, common, (kernel[0],), ("nvidia-kmod",)))
    return found


def _ubuntu(driver: _Driver) -> list[Package]:
    renamed = driver.branch >= _FIRST_WITHOUT_BRANCH

    def name(stem: str) -> str:
        return stem.replace("@", "" if renamed else f"-{driver.branch}")

    def renaming(stem: str, *others: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Conflicts and provides: the new name replaces the old one and the other way round, so both ways are open."""
        old, new = stem.replace("@", "-580"), stem.replace("@", "")
        return ((old, *others), (old,)) if renamed else ((new, *others), ())

    compute, utils, common = "libnvidia-compute@", "nvidia-utils@", "nvidia-kernel-common@"
    kernel = ("nvidia-dkms@-open", "nvidia-dkms@")

    def part(stem: str, *depends: str, files: dict[str, File]) -> Package:
        conflicts, provides = renaming(stem)
        return driver.part(name(stem), *depends, files=files, conflicts=conflicts, provides=provides)

    libraries = driver.library("libcuda") | driver.library("libnvidia-ml")
    if renamed:
        conflicts, provides = renaming(compute, "nvidia-utils-580")
        files = libraries | program("nvidia-smi")
        smi = [driver.part(name(compute), files=files, conflicts=conflicts, provides=provides)]
    else:
        smi = [part(compute, files=libraries), part(utils, f"{name(compute)}=", files=program("nvidia-smi"))]
    found = [
        *smi,
        driver.daemon(_DAEMON, name(compute)),
        driver.common(name(common), conflicts=renaming(common)[0], provides=renaming(common)[1]),
        driver.dkms(name(kernel[0]), _OPEN, name(common), *renaming(kernel[0], name(kernel[1]))),
    ]
    if driver.proprietary:
        found.append(driver.dkms(name(kernel[1]), _PROPRIETARY, name(common), *renaming(kernel[1], name(kernel[0]))))
    return found


def _fabric(driver: _Driver) -> list[Package]:
    manager = "nvidia-fabricmanager"
    files = {
        **program("nv-fabricmanager"),
        **program(f"{manager}-start.sh"),
        **units(f"{manager}.service"),
        "/usr/share/nvidia/nvswitch/fabricmanager.cfg": File("fabricmanager.cfg"),
    }
    return [
        replace(driver.part(manager, files=files, epoch=0), units=(f"{manager}.service",)),
        *(driver.part(name, epoch=0) for name in ("libnvidia-nscq", "libnvsdm", "nvidia-imex")),
    ]
