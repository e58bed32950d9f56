"""A fleet for tests: balancers in front of nodes with a stand-in engine."""

from __future__ import annotations

import csv
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import BALANCER_DEPLOY, DEPLOY, STOCK, Node, Run, hosts_of, run_pyinfra, write_inventory

from quench.lab.state import HostSpec
from quench.rollout_command import state_folder
from tests.load.load import Load, Tally

# Under which rollouts and decommissions of the tests are remembered.
NAME = "test-fleet"
WORDS = 100  # 2 s of the stand-in

BALANCERS = (
    HostSpec("lb1", "debian-12", zone="dmz", packages=STOCK),
    HostSpec("lb2", "debian-13", zone="dmz", packages=STOCK),
)


@dataclass
class Fleet:
    """Balancers and nodes, and what the inventory of the lab is changed by."""

    balancers: list[Node]
    nodes: list[Node]
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What clients call it: in the certificates of the balancers."""
        return f"llm.{self.balancers[0].lab.name}.test"

    def load(self, **options: Any) -> Load:
        """A load on the first balancer, or on the address that is given."""
        first = self.balancers[0]
        settings = {"address": first.address, "ca": first.ca, "server_name": self.name, "key": first.key}
        return Load(**{**settings, **options})


def ask(balancer: Node, command: str) -> str:
    """What HAProxy says to a command on its socket."""
    return balancer.root(f"echo '{command}' | socat -t 5 - /run/haproxy/admin.sock")


def servers(balancer: Node) -> dict[str, dict[str, str]]:
    """The nodes of all pools as a balancer sees them, by name."""
    rows = csv.DictReader(ask(balancer, "show stat").removeprefix("# ").splitlines())
    return {row["svname"]: row for row in rows if row["pxname"].startswith("pool_") and row["svname"] != "BACKEND"}


def all_up(fleet: Fleet) -> bool:
    """Whether each balancer has all nodes up, now or soon."""
    return wait(lambda: all(row["status"] == "UP" for lb in fleet.balancers for row in servers(lb).values()), 40)


@contextmanager
def forgotten(fleet: Fleet) -> Iterator[None]:
    """What is done in here begins and ends with all nodes up, and nobody remembers it."""
    assert all_up(fleet)
    yield
    for path in state_folder().glob(f"{NAME}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert all_up(fleet)


def provision(fleet: Fleet, folder: Path, *options: str) -> list[Run]:
    """Nodes and balancers at the same time: neither needs the other to come up."""

    def run(part: tuple[str, str]) -> Run:
        group, deploy = part
        mine = folder / group
        mine.mkdir(parents=True, exist_ok=True)
        inventory = write_inventory(mine, fleet.changes)
        return run_pyinfra(
            fleet.nodes[0], "-y", "--limit", group, *options, inventory=inventory, deploy=deploy, timeout=600
        )

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, (("inference", DEPLOY), ("balancers", BALANCER_DEPLOY))))


def fleet_of(name: str, folder: Path, specs: Sequence[HostSpec], **changes: Any) -> Iterator[Fleet]:
    """A provisioned fleet of these hosts."""
    for hosts in hosts_of(name, specs):
        fleet = Fleet(
            [node for host, node in hosts.items() if host.startswith("lb")],
            [node for host, node in hosts.items() if not host.startswith("lb")],
            changes,
        )
        failed = [run.text[-4000:] for run in provision(fleet, folder) if run.code != 0]
        assert not failed, "\n".join(failed)
        yield fleet


def lost(tally: Tally) -> list[str]:
    """Requests that a client had to send again, or that ended in the middle."""
    return [str(request) for request in tally.requests if request.bad or request.outcome == "refused"]


def key_of(client: str) -> str:
    return f"sk-{client}"


def entry(client: str, expires: str = "2099-01-01") -> dict[str, str]:
    """The key of a client, as a keyring has it."""
    return {"sha256": hashlib.sha256(key_of(client).encode()).hexdigest(), "expires": expires}


def wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether something comes true in that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False
