"""What the tests of the NVIDIA stack share. GPUs, drivers and all systems but Debian are simulated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support import Node, Run, run_pyinfra, write_inventory

from quench.lab import fleet
from quench.lab.state import HostSpec, load

GPU_DEPLOY = "deploys/gpu.py"
OLD, NEW = "580.95.05", "595.71.05"

# Names and versions of all that is part of a driver, and of what goes with it.
_FAMILY = {
    True: "rpm -qa --qf '%{NAME} %{VERSION}\\n' '*nvidia*' 'libnvsdm*' nvlsm 'datacenter-gpu*'",
    False: "dpkg-query -W -f '${db:Status-Abbrev}|${Package} ${Version}\\n' '*nvidia*' libcuda1 'libnvsdm*' nvlsm "
    "'datacenter-gpu*' | sed -n 's/^ii |//p'",
}


def bare_again(node: Node) -> Node:
    """The same host as if no run had ever touched it."""
    host = next(host for host in load(node.lab.name).hosts if host.name == node.name)
    fleet.remove_host(node.lab.name, node.name)
    lab = fleet.up_hosts(node.lab.name, [HostSpec(host.name, host.system, host.gpus)], engine="stand-in")
    return Node(lab, node.name)


def provision(
    nodes: Sequence[Node],
    folder: Path,
    *options: str,
    deploy: str = GPU_DEPLOY,
    timeout: float = 550,
    **changes: Any,
) -> Run:
    """Run a deploy on these hosts alone, with some keys changed for all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    inventory = write_inventory(folder, {"*": changes}, [node.name for node in nodes])
    return run_pyinfra(nodes[0], "-y", *options, inventory=inventory, deploy=deploy, timeout=timeout)


def family(node: Node) -> dict[str, str]:
    """Upstream versions of the NVIDIA packages on a host."""
    rhel = next(host.plays.packages == "dnf" for host in node.lab.hosts if host.name == node.name)
    rows = [line.split() for line in node.root(_FAMILY[rhel]).splitlines()]
    # Without Debian's epoch and revision.
    return {name: version if rhel else version.rpartition(":")[2].rpartition("-")[0] for name, version in rows}


def driver_versions(node: Node) -> set[str]:
    """Versions of all parts that are numbered like the driver: more than one is a broken set."""
    others = ("nvlsm", "datacenter-gpu", "nvidia-mig-manager", "nvidia-container", "libnvidia-container")
    return {version for name, version in family(node).items() if not name.startswith(others)}


def loaded(node: Node) -> str:
    """Version of the module that the (simulated) kernel has loaded, or an empty text."""
    return node.root("cat /sys/module/nvidia/version 2>/dev/null; true")


def cuda(node: Node) -> str:
    """What a CUDA program finds first: the error of cuInit and the number of GPUs."""
    return node.root(
        'python3 -c \'import ctypes; cuda = ctypes.CDLL("libcuda.so.1"); n = ctypes.c_int(); '
        "print(cuda.cuInit(0), cuda.cuDeviceGetCount(ctypes.byref(n)) or n.value)'"
    )
