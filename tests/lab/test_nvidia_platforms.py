"""The NVIDIA stack on each platform and each board, from bare. Simulated: all GPUs, their driver, Ubuntu and RHEL."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpus import GPU_DEPLOY, OLD, cuda, family, loaded, provision
from support import CHECKOUT, Node, hosts_of, run_pyinfra

from quench import Gpus
from quench.lab import fleet
from quench.lab.state import HostSpec
from roles.dcgm.files import packages_of
from roles.nvidia_driver.compatibility import driver_set, table

PLATFORMS = ["debian-12", "debian-13", "ubuntu-22.04", "ubuntu-24.04", "rhel-9", "rhel-10"]
BOARDS = {"2xl4": 2, "8xh100": 8, "8xb200": 8}
_GPUS = {"2xl4": "l4", "8xh100": "h100-sxm", "8xb200": "b200"}
# Each platform once and each board twice; with --all-boards, which make test-nvidia gives, each with each.
_ONCE = dict(zip(PLATFORMS, [*BOARDS, *reversed(BOARDS)], strict=True))
# Up to eighteen hosts are made, and get their packages, within the first of these tests.
pytestmark = pytest.mark.timeout(1200)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", hosts(metafunc.config))


def hosts(config: pytest.Config) -> list[str]:
    """The hosts by their names, PLATFORM-BOARD."""
    every = config.getoption("all_boards")
    return [f"{platform}-{board}" for platform in PLATFORMS for board in BOARDS if every or _ONCE[platform] == board]


@pytest.fixture(scope="module")
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Node]]:
    """These hosts after one run."""
    names = hosts(request.config)
    specs = [HostSpec(name, *name.rsplit("-", 1)) for name in names]
    for nodes in hosts_of("test-nvidia", specs):
        run = provision(list(nodes.values()), tmp_path_factory.mktemp("first"), timeout=1000)
        assert run.code == 0, run.text[-6000:]
        yield nodes


def test_the_second_run_changes_nothing(nodes: dict[str, Node]) -> None:
    run = run_pyinfra(next(iter(nodes.values())), "-y", "--json", deploy=GPU_DEPLOY)
    assert run.code == 0, run.text[-3000:]
    assert run.totals["hosts"] >= len(nodes)
    assert (run.totals["success"], run.totals["error"]) == (0, 0)


def expected(platform: str, board: str) -> dict[str, str]:
    """What the table gives such a host: the driver's set, DCGM and its exporter."""
    release = table().sets[OLD]
    gpus = {_GPUS[board]: BOARDS[board]}
    wanted = driver_set(gpus, OLD, platform)
    assert release.dcgm is not None and release.exporter is not None
    parts = packages_of(Gpus(cuda=wanted.cuda, dcgm=release.dcgm))
    # No role names it: it comes with the library that needs it, and is pinned with it.
    needed = {"libnvidia-ptxjitcompiler1": OLD} if platform.startswith("debian") else {}
    return {**wanted.packages, **parts, "datacenter-gpu-manager-exporter": release.exporter, **needed}


def test_the_set_is_exactly_the_pinned_one_and_it_computes(nodes: dict[str, Node], name: str) -> None:
    node = nodes[name]
    platform, _, board = name.rpartition("-")
    assert family(node) == expected(platform, board)
    assert loaded(node) == OLD
    assert cuda(node) == f"0 {BOARDS[board]}"


def test_the_board_decides_on_fabric_manager_and_subnet_manager(nodes: dict[str, Node], name: str) -> None:
    has = set(family(nodes[name])) & {"nvidia-fabricmanager", "nvlsm"}
    board = name.rpartition("-")[2]
    assert (
        has == {"2xl4": set(), "8xh100": {"nvidia-fabricmanager"}, "8xb200": {"nvidia-fabricmanager", "nvlsm"}}[board]
    )
    # The start script of the fabric manager asks it for adapters.
    assert bool(nodes[name].root("command -v ibstat; true")) == (board == "8xb200")


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_mirror_has_newer_versions_and_an_upgrade_of_everything_moves_none(
    nodes: dict[str, Node], platform: str
) -> None:
    node = nodes[f"{platform}-{_ONCE[platform]}"]
    before = family(node)
    if platform.startswith("rhel"):
        offered = node.root("dnf -q --disableexcludes=all repoquery --qf '%{version}' nvidia-driver-cuda")
        node.root("dnf -q -y upgrade")
    else:
        offered = node.root("apt-cache madison nvidia-fabricmanager | cut -d'|' -f2")
        node.root("DEBIAN_FRONTEND=noninteractive apt-get -q -y dist-upgrade >/dev/null")
    assert "595.71.05" in offered
    assert family(node) == before


def test_the_checks_of_a_live_host_pass(nodes: dict[str, Node], tmp_path: Path) -> None:
    # On debian-12 and rhel-9 molecule runs them. What they ask differs by platform and by board.
    others = [f"{platform}-{board}" for platform, board in _ONCE.items() if platform not in ("debian-12", "rhel-9")]
    config = tmp_path / "ssh_config"
    config.write_text(fleet.ssh_config(next(iter(nodes.values())).lab))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/host", "--sudo", f"--ssh-config={config}",
         f"--hosts={','.join(f'ssh://{host}' for host in others)}"],
        cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]


def test_a_host_whose_gpus_are_not_those_of_its_data_is_refused(nodes: dict[str, Node], tmp_path: Path) -> None:
    node = nodes["debian-12-2xl4"]
    tree = node.tree()
    run = provision([node], tmp_path, nvidia_driver_gpus={"h100-sxm": 8})
    assert run.code == 1
    assert "nvidia_driver_gpus: the host has 2 x L4; set nvidia_driver_gpus = {'l4': 2} for this host" in run.text
    assert "nothing was changed" in run.text
    assert node.tree() == tree
