"""GPU profiles of lab hosts. Every GPU of the lab is simulated: entries in /sys and programs that play along."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass

_NVIDIA = "0x10de"
_3D_CONTROLLER = "0x030200"
_BRIDGE = "0x068000"


@dataclass(frozen=True)
class Model:
    """A GPU model. The kernel part of the driver that it needs decides what a host can run.

    Attributes:
        modules: flavours of the kernel module that drive it, `open` and `proprietary`.
        mig: whether it can be partitioned.
        fabric: what connects the board's GPUs: `none`, `nvswitch` (on the PCI bus) or `nvlink5` (not on it).
    """

    name: str
    device: str
    modules: tuple[str, ...]
    mig: bool = False
    fabric: str = "none"


L4 = Model("NVIDIA L4", "0x27b8", ("open", "proprietary"))
V100 = Model("Tesla V100-SXM2-16GB", "0x1db5", ("proprietary",))
H100 = Model("NVIDIA H100 80GB HBM3", "0x2330", ("open", "proprietary"), mig=True, fabric="nvswitch")
B200 = Model("NVIDIA B200", "0x2901", ("open",), mig=True, fabric="nvlink5")
_NVSWITCH = "0x22a3"


@dataclass(frozen=True)
class Profile:
    """What a host has: GPUs, and NVSwitches as far as the PCI bus shows them."""

    gpus: tuple[Model, ...] = ()
    nvswitches: int = 0

    @property
    def fabric(self) -> str:
        """What connects the GPUs of the board."""
        return next((gpu.fabric for gpu in self.gpus if gpu.fabric != "none"), "none")

    def pci(self) -> dict[str, dict[str, str]]:
        """The entries of /sys/bus/pci/devices, as the kernel writes them."""
        entries = {
            gpu_address(index): {"vendor": _NVIDIA, "device": gpu.device, "class": _3D_CONTROLLER}
            for index, gpu in enumerate(self.gpus)
        }
        for index in range(self.nvswitches):
            entries[f"0000:{0xC0 + index:02x}:00.0"] = {"vendor": _NVIDIA, "device": _NVSWITCH, "class": _BRIDGE}
        return entries

    def as_json(self, host: str) -> str:
        """The file from which the simulated programs on a host take everything."""
        gpus = [
            {
                "index": index,
                "address": gpu_address(index),
                "uuid": f"GPU-{uuid.uuid5(uuid.NAMESPACE_DNS, f'{host}-gpu{index}.quench-lab')}",
                "name": gpu.name,
                "device": gpu.device,
                "modules": list(gpu.modules),
                "mig": gpu.mig,
                "fabric": gpu.fabric,
            }
            for index, gpu in enumerate(self.gpus)
        ]
        return json.dumps({"simulated": True, "gpus": gpus, "pci": self.pci()}, indent=1) + "\n"


def gpu_address(index: int) -> str:
    """PCI address of a GPU."""
    return f"0000:{0x10 + 8 * index:02x}:00.0"


PROFILES = {
    "none": Profile(),
    "2xl4": Profile((L4,) * 2),
    "8xh100": Profile((H100,) * 8, nvswitches=4),
    "8xb200": Profile((B200,) * 8),
    "v100+b200": Profile((V100, B200)),
}
