"""What a host says of its GPUs, and what speaks against a run on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quench import Problem, shell_script
from roles.nvidia_driver.compatibility import gpu_of, table
from roles.nvidia_driver.settings import NvidiaDriverSettings

_HERE = Path(__file__).parent
# PCI classes of a GPU: VGA and 3D controllers. NVSwitches are bridges, 0x0680. pci.ids
_GPU_CLASSES = ("0x0300", "0x0302")
# What the packages, the sources of the module and its build take, and an initramfs. In KiB.
_SPACE = {"/boot": 200 << 10}
_SPACE_ELSEWHERE = 3 << 20

PROBE = shell_script(_HERE / "probe.sh")


@dataclass(frozen=True)
class GpuHost:
    """A host as `probe.sh` found it."""

    gpus: dict[str, int]
    unknown: list[str]
    loaded: str
    nouveau: bool
    runfile: bool
    unknown_key: bool
    foreign: list[str]
    packages: list[str]
    space: dict[str, int]


def parse(lines: Sequence[str]) -> GpuHost:
    """The answer of `probe.sh`."""
    words = [line.split() for line in lines]
    devices = [row[3].removeprefix("0x") for row in words if row[0] == "pci" and row[2].startswith(_GPU_CLASSES)]
    names = [(device, gpu_of(device)) for device in devices]
    return GpuHost(
        gpus=dict(sorted(Counter(name for _, name in names if name is not None).items())),
        unknown=sorted({device for device, name in names if name is None}),
        loaded=next((row[1] for row in words if row[0] == "loaded" and len(row) > 1), ""),
        nouveau=["nouveau"] in words,
        runfile=["runfile"] in words,
        unknown_key=["secure-boot"] in words,
        foreign=[row[1] for row in words if row[0] == "foreign"],
        packages=[row[1] for row in words if row[0] == "package"],
        space={row[1]: int(row[2]) for row in words if row[0] == "space"},
    )


def problems(host: str, settings: NvidiaDriverSettings, found: GpuHost) -> Iterator[Problem]:
    """What speaks against a run, with the key and what helps."""

    def problem(field: str, what: str, remedy: str) -> Problem:
        return Problem(host, f"nvidia_driver_{field}", what, remedy)

    for device in found.unknown:
        remedy = "add it to roles/nvidia_driver/compatibility.yaml, with its source"
        yield problem("gpus", f"the GPU with the PCI device id {device} is not in the table", remedy)
    if found.gpus != dict(sorted(settings.gpus.items())):
        has = ", ".join(f"{count} x {table().gpus[gpu].name}" for gpu, count in found.gpus.items()) or "no known GPU"
        yield problem("gpus", f"the host has {has}", f"set nvidia_driver_gpus = {found.gpus or '{}'} for this host")
    if found.runfile:
        what = "a driver of NVIDIA's .run installer is on the host, which no package manager knows of"
        yield problem("version", what, "remove it: /usr/bin/nvidia-uninstall --silent")
    if found.unknown_key:
        yield problem(
            "version",
            "Secure Boot is on, and the key that DKMS signs modules with is not enrolled: no module would load",
            "install dkms, `dkms generate_mok`, `mokutil --import /var/lib/dkms/mok.pub`, reboot and confirm at the "
            "console; then run again",
        )
    for file in found.foreign:
        what = f"{file} is another source of the same packages, and sets of two sources do not fit together"
        yield problem("repository", what, f"remove {file}")
    for package in found.packages:
        yield problem("version", f"{package}, of another source, is installed", f"remove the package {package}")
    if found.loaded != settings.version:
        for folder, free in found.space.items():
            wanted = _SPACE.get(folder, _SPACE_ELSEWHERE)
            if free < wanted:
                what = f"{folder} has {free >> 10} MiB free, and the driver takes up to {wanted >> 10}"
                yield problem("version", what, f"make room in {folder}")
