"""Labs for the tests: one with the real engine, one with the stand-in. Both are taken away at the end."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO

import pytest

from quench.lab.state import HostSpec, cache_folder

sys.path.insert(0, str(Path(__file__).parent))

from fleets import BALANCERS, Fleet, entry, fleet_of
from support import STOCK, Node, hosts_of, run_pyinfra

# A secret that the engines get, and that must show up nowhere but in its place.
CANARY_TOKEN = "hf_canaryCANARYcanary0123456789"

_TURN = pytest.StashKey[IO[str]]()


def _take(turn: IO[str], kind: int) -> None:
    """Wait for a turn. Whoever waits to be alone is not overtaken by those that come after him."""
    with (cache_folder() / "tests.next").open("a") as following:
        fcntl.flock(following, fcntl.LOCK_EX)
        fcntl.flock(turn, kind)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """`make test` runs two parts at the same time: a test runs beside those of the other part ..."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "tests.turn").open("a") as turn:
        _take(turn, fcntl.LOCK_SH)
        item.stash[_TURN] = turn
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """... and one whose times count, which is marked `alone`, while the other part waits between two of its tests."""
    if item.get_closest_marker("alone") is None:
        return (yield)
    turn = item.stash[_TURN]
    # Two that want to be alone would else wait for each other.
    fcntl.flock(turn, fcntl.LOCK_UN)
    _take(turn, fcntl.LOCK_EX)
    try:
        return (yield)
    finally:
        fcntl.flock(turn, fcntl.LOCK_SH)


@pytest.fixture(scope="session")
def bare_real() -> Iterator[Node]:
    """A Debian 12 host that has its packages and nothing else, and whose mirror has the real vLLM for the CPU."""
    for hosts in hosts_of("test-real", [HostSpec("node1", "debian-12", packages=STOCK)], engine="vllm-cpu"):
        hosts["node1"].environment["HF_TOKEN"] = CANARY_TOKEN
        yield hosts["node1"]


@pytest.fixture(scope="session")
def real_node(bare_real: Node) -> Node:
    """That host after one run: the real engine behind nginx."""
    run = run_pyinfra(bare_real, "-y")
    assert run.code == 0, run.text[-4000:]
    return bare_real


@pytest.fixture(scope="session")
def untouched_stand_in() -> Iterator[Node]:
    """A Debian 12 host that has its packages and nothing else, and whose mirror has the stand-in engine."""
    for hosts in hosts_of("test-stand-in", [HostSpec("node1", "debian-12", packages=STOCK)]):
        yield hosts["node1"]


@pytest.fixture(scope="session")
def stand_in_node(untouched_stand_in: Node) -> Node:
    """That host after one run: the stand-in engine behind nginx."""
    run = run_pyinfra(untouched_stand_in, "-y")
    assert run.code == 0, run.text[-4000:]
    return untouched_stand_in


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two balancers in front of three nodes with the stand-in engine, and a keyring of several clients."""
    clients = {
        "demo": {"keys": [entry("demo")], "requests_per_minute": 60000, "concurrent": 5000},
        "slow": {"keys": [entry("slow")], "requests_per_minute": 3},
        "narrow": {"keys": [entry("narrow")], "concurrent": 2, "requests_per_minute": 6000},
        "late": {"keys": [entry("late", "2020-01-01")]},
        "other": {"keys": [entry("other")], "models": []},
        "two": {"keys": [entry("two-old"), entry("two-new")]},
    }
    settings = {"haproxy_clients": clients, "haproxy_body_mebibytes": 2, "haproxy_queue_requests": 4}
    changes = dict.fromkeys(("lb1", "lb2"), settings)
    systems = {"node1": "debian-12", "node2": "debian-13", "node3": "debian-12"}
    nodes = [HostSpec(name, system, packages=STOCK) for name, system in systems.items()]
    yield from fleet_of("test-fleet", tmp_path_factory.mktemp("fleet"), [*BALANCERS, *nodes], **changes)
