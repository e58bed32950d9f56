"""Hosts that get no driver: without a GPU, or with GPUs that no driver drives together. Simulated GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gpus import family, provision
from support import Node, hosts_of, lab_data

from quench.lab.state import HostSpec

PLATFORMS = ["debian-12", "debian-13", "ubuntu-22.04", "ubuntu-24.04", "rhel-9", "rhel-10"]


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, Node]]:
    """A bare host of each platform with V100 beside B200, and one with no GPU."""
    mixed = [HostSpec(f"{platform}-mixed", platform, "v100+b200") for platform in PLATFORMS]
    none = [HostSpec(f"{platform}-none", platform, "none") for platform in PLATFORMS]
    yield from hosts_of("test-nvidia", [*mixed, *none])


def test_volta_beside_blackwell_is_refused_on_each_platform(nodes: dict[str, Node], tmp_path: Path) -> None:
    mixed = [nodes[f"{platform}-mixed"] for platform in PLATFORMS]
    run = provision(mixed, tmp_path)
    assert run.code == 1
    for node in mixed:
        line = f"{node.name}: nvidia_driver_gpus: no driver drives V100 SXM2 32 GB and B200 in one host"
        assert line in run.text
        assert family(node) == {}
    assert "Connected" not in run.text


def test_what_is_on_the_bus_counts_and_not_what_the_data_says(nodes: dict[str, Node], tmp_path: Path) -> None:
    mixed = [nodes[f"{platform}-mixed"] for platform in PLATFORMS]
    run = provision(mixed, tmp_path, nvidia_driver_gpus={"b200": 1})
    assert run.code == 1
    for node in mixed:
        assert f"{node.name}: nvidia_driver_gpus: the host has 1 x B200, 1 x V100" in run.text
        assert family(node) == {}


def test_a_host_without_gpus_is_left_alone(nodes: dict[str, Node], tmp_path: Path) -> None:
    none = [nodes[f"{platform}-none"] for platform in PLATFORMS]
    run = provision(none, tmp_path, "--json")
    assert run.code == 0, run.text[-3000:]
    assert all(family(node) == {} for node in none)
    assert all(node.root("ls -A /var/lib/quench 2>/dev/null; true") == "" for node in none)


def test_a_host_that_should_have_gpus_and_has_none_is_refused(nodes: dict[str, Node], tmp_path: Path) -> None:
    node = nodes["debian-13-none"]
    changes = {
        key: value for key, value in lab_data(nodes["debian-13-mixed"]).items() if key.startswith("nvidia_driver")
    }
    run = provision(
        [node], tmp_path, **{**changes, "nvidia_driver_gpus": {"l4": 2}, "nvidia_driver_version": "580.95.05"}
    )
    assert run.code == 1
    assert "nvidia_driver_gpus: the host has no known GPU; set nvidia_driver_gpus = {} for this host" in run.text
    assert family(node) == {}
