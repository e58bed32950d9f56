"""Settings of the nvidia_driver role."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator
from typing_extensions import override

from quench import openpgp
from quench.problems import Problem
from quench.settings import EVERY_PLATFORM, Platform, RoleSettings
from roles.nvidia_driver.compatibility import impossible, table

# The keys that NVIDIA signs its CUDA repositories with, by the names of their files there: 3bf863cc.pub,
# 8793F200.pub, D42D0685.pub. The fingerprint of rhel10's CDF6BA43.pub is not known here, and must be set.
_FINGERPRINTS = {
    "debian-12": "EB693B3035CD5710E231E123A4B469963BF863CC",
    "debian-13": "02182E60104FCDC26EAE1B8597A5D4CB8793F200",
    "ubuntu-22.04": "EB693B3035CD5710E231E123A4B469963BF863CC",
    "ubuntu-24.04": "EB693B3035CD5710E231E123A4B469963BF863CC",
    "rhel-9": "610C7B14E068A878070DA4E99CD0A493D42D0685",
}


class NvidiaDriverSettings(RoleSettings):
    """The NVIDIA driver, its kernel modules, libraries and fabric manager: one pinned set."""

    prefix: ClassVar[str] = "nvidia_driver"
    platforms: ClassVar[tuple[Platform, ...]] = EVERY_PLATFORM

    gpus: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default={},
        description=(
            "GPUs of the host, by model and number. The run compares them with what is on the PCI bus. Empty: the "
            "driver is not Quench's business: no NVIDIA role does anything on this host, and what is there stays. "
            "roles/nvidia_driver/compatibility.yaml has the models."
        ),
        examples=[{"h100-sxm": 8}],
    )
    version: str = Field(
        default="",
        validate_default=True,
        description=(
            "Version of the driver, and with it the set of all parts that go with it: kernel modules, libraries, "
            "fabric manager, DCGM and its exporter, container toolkit. To upgrade or to roll back is to change it."
        ),
        examples=["580.95.05"],
    )
    source_zones: list[str] = Field(
        default=["management"], description="Zones in which the mirror of NVIDIA's repository is."
    )
    repository: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s@]+[^/\s@]$",
        repr=False,
        description=(
            "Mirror of NVIDIA's CUDA repository for this platform. Unset: NVIDIA's own. For a driver of Debian's own, "
            "a mirror of Debian's archive."
        ),
        examples=["https://mirror.example.org/cuda/repos/debian12/x86_64"],
    )
    repository_key: str = Field(
        default="",
        description=(
            "File, where the run starts, with the public key that the repository is signed with. NVIDIA has it "
            "beside the packages: 3bf863cc.pub, for Debian 13 8793F200.pub, for RHEL 9 D42D0685.pub, for RHEL 10 "
            "CDF6BA43.pub."
        ),
        examples=["keys/3bf863cc.pub"],
    )
    repository_fingerprint: str | None = Field(
        default=None,
        pattern=r"^[0-9A-F]{40}$",
        description="Fingerprint that the key must have. Unset: that of NVIDIA's key. Set it for a mirror that signs.",
        examples=["EB693B3035CD5710E231E123A4B469963BF863CC"],
    )
    reboot: Literal["never", "when-needed"] = Field(
        default="never",
        description=(
            "What to do where a loaded module must give way to another. `when-needed` reboots one host at a time. "
            "`never` installs, and then ends the run on the host with the reboot as pending."
        ),
    )
    reboot_seconds: int = Field(
        default=900, ge=10, description="How long a rebooting host may take until it is back, in seconds."
    )
    module_options: dict[str, str] = Field(
        default={},
        description="Options of the kernel module nvidia, such as NVreg_CoherentGPUMemoryMode. See modinfo nvidia.",
        examples=[{"NVreg_CoherentGPUMemoryMode": "driver"}],
    )

    @field_validator("gpus")
    @classmethod
    def _known(cls, value: dict[str, int]) -> dict[str, int]:
        for name in value:
            if name not in table().gpus:
                raise ValueError(f"{name!r} is no GPU of the table; choose from: {', '.join(table().gpus)}")
        return value

    @field_validator("version")
    @classmethod
    def _set_with_gpus(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("gpus") and value not in table().sets:
            what = f"{value!r} is no set of the table" if value else "is not set, but there are GPUs"
            raise ValueError(f"{what}; choose from: {', '.join(table().sets)}")
        return value

    @field_validator("module_options")
    @classmethod
    def _one_line(cls, value: dict[str, str]) -> dict[str, str]:
        for name, option in value.items():
            if not (name.replace("_", "").isalnum() and option and option.isprintable()):
                raise ValueError(f"{name} = {option!r} is no module option; give a name and a value of one line")
        return value

    @property
    def family(self) -> str:
        """debian, ubuntu or rhel."""
        return self.platform.partition("-")[0]

    @property
    def distro(self) -> bool:
        """Whether the set is the distribution's own."""
        return bool(self.gpus) and table().sets[self.version].distro is not None

    def key_text(self) -> str:
        """The repository's public key, in ASCII armor."""
        return Path(self.repository_key).expanduser().read_text()

    @override
    def problems(self, host: str) -> Iterator[Problem]:
        if not self.gpus:
            return
        for field, what, remedy in impossible(self.gpus, self.version, self.platform):
            yield Problem(host, f"nvidia_driver_{field}", what, remedy)
        if self.distro:
            if self.repository is None:
                what = f"is not set, and {self.version} comes from Debian's own archive, component non-free"
                yield Problem(host, "nvidia_driver_repository", what, "name a mirror of Debian's archive that has it")
            return
        wanted = self.repository_fingerprint or _FINGERPRINTS.get(self.platform)
        if wanted is None:
            what = f"is not set, and that of NVIDIA's key for {self.platform} is not known here"
            remedy = "compare the key with NVIDIA's own page, and set its fingerprint"
            yield Problem(host, "nvidia_driver_repository_fingerprint", what, remedy)
            return
        yield from openpgp.key_problems(host, "nvidia_driver", self.repository_key, wanted)
