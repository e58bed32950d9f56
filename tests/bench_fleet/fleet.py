"""The fleet that is measured: two balancers, three nodes, and clients enough that no limit of theirs is met."""

from __future__ import annotations

import hashlib
import runpy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quench import haproxy
from quench.lab import fleet as lab_fleet
from quench.lab.progress import LabError, step
from quench.lab.state import HostSpec
from tests.lab.support import BALANCER_DEPLOY, DEPLOY, MODEL, Node, run_pyinfra, write_inventory
from tests.load import Load

LAB = "bench-fleet"
SPECS = (
    HostSpec("lb1", "debian-12", zone="dmz"),
    HostSpec("lb2", "debian-13", zone="dmz"),
    *(HostSpec(f"node{number}", "debian-12") for number in (1, 2, 3)),
)
# A client may send 60000 requests a minute, and wrk sends more than ten times as many.
KEYS = [f"sk-bench-{number}" for number in range(64)]
# 5000 streams on three nodes, and still enough when one of them is away.
CONCURRENT = 2560


@dataclass(frozen=True)
class Fleet:
    """The lab's hosts, in front and behind."""

    balancers: list[Node]
    nodes: list[Node]

    @property
    def address(self) -> str:
        """The one that the balancers share."""
        return self.nodes[0].lab.shared_address

    @property
    def name(self) -> str:
        """What clients call it: in the certificates of the balancers."""
        return f"llm.{LAB}.test"

    def load(self, **options: Any) -> Load:
        """A load on the shared address."""
        settings = {"address": self.address, "ca": self.balancers[0].ca, "server_name": self.name, "key": KEYS[0]}
        return Load(**{**settings, **options})

    def moves(self) -> int:
        """How often the shared address has come to a balancer so far."""
        count = "journalctl -q --output=cat -u keepalived.service | grep -c 'Entering MASTER STATE'; true"
        return sum(int(one.root(count)) for one in self.balancers)

    def holder(self) -> Node:
        """The balancer that has the shared address."""
        has = [one for one in self.balancers if f" {self.address}/" in one.root("ip -brief address show dev eth0")]
        if len(has) != 1:
            raise LabError(f"{self.address} is on {len(has)} balancers, not on one")
        return has[0]


def inside(host: Node) -> list[str]:
    """Words before a command that run it on this machine, in the network of a lab host."""
    return ["nsenter", f"--net=/proc/{lab_fleet.process(host.lab, host.name)}/ns/net"]


def inventory(folder: Path, **model: Any) -> str:
    """An inventory file of the lab, with more keys, room for all requests, and these settings of the model."""
    clients = {
        f"bench-{number}": {
            "keys": [{"sha256": hashlib.sha256(key.encode()).hexdigest(), "expires": "2099-01-01"}],
            "requests_per_minute": 60000,
            "concurrent": 10000,
        }
        for number, key in enumerate(KEYS)
    }
    models = dict(runpy.run_path("inventories/lab.py")["inference"])["node1"]["vllm_models"]
    models[MODEL] |= {"concurrent": CONCURRENT, **model}
    changes = {name: {"haproxy_clients": clients} for name in ("lb1", "lb2")}
    changes |= {spec.name: {"vllm_models": models} for spec in SPECS if spec.name.startswith("node")}
    folder.mkdir(parents=True)
    return write_inventory(folder, changes)


def up(folder: Path) -> Fleet:
    """A provisioned fleet, by the operator's own runs, in which all balancers find all nodes up."""
    lab_fleet.down(LAB, missing_ok=True)
    lab = lab_fleet.up_hosts(LAB, SPECS, engine="stand-in")
    hosts = [Node(lab, spec.name) for spec in SPECS]
    path = inventory(folder / "first")

    def provision(part: tuple[str, str]) -> None:
        group, deploy = part
        run = run_pyinfra(hosts[0], "-y", "--limit", group, inventory=path, deploy=deploy, timeout=600)
        if run.code != 0:
            raise LabError(f"{deploy}: {run.text[-3000:]}")

    # At the same time: neither needs the other to come up.
    with step("provisioning 2 balancers and 3 nodes"), ThreadPoolExecutor(2) as pool:
        list(pool.map(provision, (("inference", DEPLOY), ("balancers", BALANCER_DEPLOY))))
    fleet = Fleet(hosts[:2], hosts[2:])
    wait_until_up(fleet)
    return fleet


def servers(balancer: Node) -> list[haproxy.Server]:
    """The nodes as a balancer sees them; none if it cannot be asked."""
    try:
        found = haproxy.servers(_ask(balancer, "show stat").splitlines())
    except ValueError:
        return []
    return [server for server in found if server.pool.startswith("pool_")]


def _ask(balancer: Node, command: str) -> str:
    return balancer.root(f"echo '{command}' | socat -t 5 - /run/haproxy/admin.sock", check=False)


@contextmanager
def alone(fleet: Fleet, node: Node) -> Iterator[None]:
    """One node gets all requests: at each balancer, the others are in maintenance meanwhile."""

    def others(state: haproxy.State) -> None:
        for one in fleet.balancers:
            chosen = [server for server in servers(one) if server.name != node.name]
            if answer := _ask(one, haproxy.set_state(chosen, state)).strip():
                raise LabError(f"{one.name}: {answer}")

    others("maint")
    try:
        yield
    finally:
        others("ready")
        wait_until_up(fleet)


def wait_until_up(fleet: Fleet, seconds: float = 60) -> None:
    """Wait until every balancer sends every node requests."""

    def up() -> bool:
        seen = [servers(one) for one in fleet.balancers]
        return all(found and all(server.up for server in found) for found in seen)

    wait(up, "nodes are down", seconds)


def wait(condition: Callable[[], bool], otherwise: str, seconds: float) -> None:
    """Raises LabError if something is not so after a time in seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"{otherwise} for {seconds:g} s")
        time.sleep(0.2)
