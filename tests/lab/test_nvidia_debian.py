"""Debian 13's own driver: the real packages, from Debian's non-free, with Debian's signatures.

Real: packages, apt, pins, DKMS and the sources it builds. Simulated: the GPUs, and the kernel's headers, with which no
real module can be built. So the run goes as far as the build, and then has to leave nothing behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from gpus import GPU_DEPLOY, family
from support import Node, Run, hosts_of, run_pyinfra, write_inventory

from quench.lab.state import HostSpec

VERSION = "550.163.01"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    for nodes in hosts_of("test-nvidia", [HostSpec("debian", "debian-13", "2xl4")]):
        yield nodes["debian"]


@pytest.fixture(scope="module")
def run(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Run:
    changes = {
        "*": {"nvidia_driver_version": VERSION, "nvidia_driver_repository": f"{node.lab.mirror}/debian"},
        "remove": ["nvidia_driver_repository_key", "nvidia_driver_repository_fingerprint"],
    }
    inventory = write_inventory(tmp_path_factory.mktemp("debian"), changes, [node.name])
    return run_pyinfra(node, "-y", inventory=inventory, deploy=GPU_DEPLOY, timeout=550)


def test_the_real_packages_are_installed_in_the_pinned_version(node: Node, run: Run) -> None:
    log = node.root("cat /var/log/dpkg.log")
    unpacked = dict(re.findall(r" status unpacked (\S+?)(?::\S+)? (\S+)$", log, re.MULTILINE))
    assert {"libcuda1", "nvidia-smi", "nvidia-open-kernel-dkms", "libnvidia-ml1"} <= set(unpacked)
    driver = {
        name: version for name, version in unpacked.items() if name in ("libcuda1", "nvidia-smi", "libnvidia-ml1")
    }
    assert {version.partition("-")[0] for version in driver.values()} == {VERSION}, driver
    # From Debian's archive, and no package of the lab's own.
    assert "SIMULATED" not in node.root("dpkg-deb --field /var/cache/apt/archives/nvidia-smi_*.deb 2>/dev/null; true")


def test_a_build_that_fails_is_said_and_leaves_nothing_of_the_driver(node: Node, run: Run) -> None:
    assert run.code == 1
    assert f"Build of nvidia.ko failed for: {node.root('uname -r')}" in run.text, run.text[-3000:]
    assert "the package manager or the check of its work failed; the former packages are back" in run.text
    assert family(node) == {}
    assert (
        node.root("dpkg --audit; ls /etc/apt/sources.list.d /etc/apt/quench-sources.d | grep quench-nvidia; true") == ""
    )
