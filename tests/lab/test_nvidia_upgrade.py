"""From one branch of the driver to the next and back, on HGX boards. Simulated: GPUs, driver, Ubuntu and RHEL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gpus import GPU_DEPLOY, NEW, OLD, cuda, driver_versions, family, loaded, provision
from support import Node, hosts_of, run_pyinfra

from quench.lab.state import HostSpec

# Debian is real; Ubuntu changes the names of the packages between these branches; RHEL has another package manager.
PLATFORMS = ["debian-12", "ubuntu-24.04", "rhel-9"]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Node]]:
    """HGX hosts after one run."""
    specs = [HostSpec(f"{platform}-hgx", platform, "8xh100") for platform in PLATFORMS]
    for nodes in hosts_of("test-nvidia", specs):
        run = provision(list(nodes.values()), tmp_path_factory.mktemp("first"))
        assert run.code == 0, run.text[-6000:]
        yield nodes


def check(node: Node, version: str, dcgm: str) -> None:
    """All parts are of one set, and compute."""
    assert driver_versions(node) == {version}
    assert family(node)["datacenter-gpu-manager-4-core"] == dcgm
    assert loaded(node) == version
    assert cuda(node) == "0 8"
    assert node.root("nv-fabricmanager --version").split(":")[1].split()[0] == version
    for unit in ("nvidia-persistenced", "nvidia-fabricmanager", "nvidia-dcgm", "nvidia-dcgm-exporter"):
        assert node.root(f"systemctl is-active {unit}") == "active"


def test_without_leave_to_reboot_the_run_ends_with_the_reboot_as_pending(
    nodes: dict[str, Node], tmp_path: Path
) -> None:
    run = provision(list(nodes.values()), tmp_path, nvidia_driver_version=NEW, nvidia_driver_reboot="never")
    assert run.code == 1
    for node in nodes.values():
        line = f"{node.name}: nvidia_driver_reboot: a reboot is pending: the module nvidia {OLD} is loaded, and {NEW}"
        assert line in run.text
        # What runs goes on running, and the set on the disk is whole.
        assert loaded(node) == OLD
        assert driver_versions(node) == {NEW}
        assert node.root("systemctl is-active nvidia-fabricmanager") == "active"


def test_an_upgrade_moves_every_part_together(nodes: dict[str, Node], tmp_path: Path) -> None:
    boots = {name: node.root("cut -d' ' -f22 /proc/1/stat") for name, node in nodes.items()}
    run = provision(list(nodes.values()), tmp_path, nvidia_driver_version=NEW)
    assert run.code == 0, run.text[-6000:]
    for name, node in nodes.items():
        check(node, NEW, "4.5.3")
        assert node.root("cut -d' ' -f22 /proc/1/stat") != boots[name]


def test_the_run_after_the_upgrade_changes_nothing(nodes: dict[str, Node], tmp_path: Path) -> None:
    run = provision(list(nodes.values()), tmp_path, "--json", nvidia_driver_version=NEW)
    assert run.code == 0, run.text[-3000:]
    assert (run.totals["success"], run.totals["error"]) == (0, 0)
    assert run.totals["hosts"] >= len(nodes)


def test_an_unattended_upgrade_moves_nothing_of_the_set(nodes: dict[str, Node]) -> None:
    for name, node in nodes.items():
        before = family(node)
        if name.startswith("rhel"):
            # What dnf-automatic does.
            node.root("dnf -q -y upgrade")
        else:
            node.root(
                "apt-get -q update >/dev/null; DEBIAN_FRONTEND=noninteractive apt-get -q -y dist-upgrade >/dev/null"
            )
        assert family(node) == before


def test_a_rollback_moves_every_part_back(nodes: dict[str, Node], tmp_path: Path) -> None:
    run = provision(list(nodes.values()), tmp_path)
    assert run.code == 0, run.text[-6000:]
    for node in nodes.values():
        check(node, OLD, "4.4.1")
    assert not [name for name in family(nodes["ubuntu-24.04-hgx"]) if name in ("libnvidia-compute", "nvidia-dkms-open")]
    again = run_pyinfra(next(iter(nodes.values())), "-y", "--json", deploy=GPU_DEPLOY)
    assert (again.code, again.totals["success"]) == (0, 0), again.text[-3000:]
