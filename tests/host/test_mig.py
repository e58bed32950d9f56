"""MIG: the GPUs are cut as the inventory says, now and after each boot."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Packages, Unit

CONFIG = "/etc/nvidia-mig-manager/quench.yaml"


@pytest.fixture(scope="module")
def manager(unit: Callable[[str], Unit]) -> Unit:
    return unit("nvidia-mig-manager.service")


@pytest.fixture(scope="module")
def layout(host: Host) -> tuple[str, list[dict[str, Any]]]:
    """Name of the one layout, and how it cuts which GPUs."""
    ((name, parts),) = yaml.safe_load(host.file(CONFIG).content_string)["mig-configs"].items()
    return name, parts


@pytest.fixture(scope="module")
def listed(host: Host) -> dict[int, Counter[str]]:
    """Slices of each GPU by profile, as nvidia-smi lists them."""
    found: dict[int, Counter[str]] = {}
    gpu = -1
    for line in host.check_output("nvidia-smi -L").splitlines():
        if match := re.match(r"GPU (\d+):", line):
            gpu = int(match[1])
            found[gpu] = Counter()
        elif match := re.match(r"\s+MIG (\S+)\s", line):
            found[gpu][match[1]] += 1
    return found


def test_the_manager_is_of_the_pinned_version(packages: Packages) -> None:
    assert packages.installed()["nvidia-mig-manager"] == packages.pinned("nvidia-mig-manager")


def test_the_layout_is_applied(host: Host, layout: tuple[str, list[dict[str, Any]]]) -> None:
    done = host.run("nvidia-mig-parted assert -f %s -c %s", CONFIG, layout[0])
    assert done.rc == 0, done.stdout + done.stderr


def test_each_gpu_has_the_slices_of_its_layout(
    layout: tuple[str, list[dict[str, Any]]], listed: dict[int, Counter[str]]
) -> None:
    assert listed != {}
    for part in layout[1]:
        for gpu in listed if part["devices"] == "all" else part["devices"]:
            assert dict(listed[gpu]) == part["mig-devices"], f"GPU {gpu}"


def test_the_layout_is_applied_again_at_each_boot(host: Host, manager: Unit) -> None:
    assert host.service(manager.name).is_enabled
    assert manager.property("ActiveState") == "active", manager.journal()
    assert manager.property("Result") == "success", manager.journal()


def test_the_unit_has_its_drop_in_and_so_applies_this_layout(
    manager: Unit, layout: tuple[str, list[dict[str, Any]]]
) -> None:
    assert manager.property("NeedDaemonReload") == "no"
    assert f"/etc/systemd/system/{manager.name}.d/quench.conf" in manager.property("DropInPaths").split()
    environment = manager.property("Environment").split()
    assert {f"MIG_PARTED_CONFIG_FILE={CONFIG}", f"MIG_PARTED_SELECTED_CONFIG={layout[0]}"} <= set(environment)


def test_the_layout_is_there_before_anything_uses_a_gpu(manager: Unit) -> None:
    assert "nvidia-dcgm.service" in manager.property("Before").split()
