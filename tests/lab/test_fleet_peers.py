"""Hosts that run one engine together are open to each other, and to nobody else: packets between the fleet's hosts.

What they say to each other is simulated by a web server. NCCL's ports cannot be named beforehand, so all of TCP passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleets import Fleet, wait
from support import Node, Run, run_pyinfra, write_inventory

PORT = 29501


def together(fleet: Fleet, folder: Path, flows: dict[str, list[dict[str, object]]]) -> Run:
    """A run of the first two nodes, with these flows of their own."""
    changes = {name: {"firewall_flows": found} for name, found in flows.items()}
    inventory = write_inventory(folder, {**fleet.changes, **changes})
    return run_pyinfra(fleet.nodes[0], "-y", "--limit", "node1", "--limit", "node2", inventory=inventory)


@pytest.fixture(scope="module")
def pair(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    """The two, each with a server that the other may call."""
    folder = tmp_path_factory.mktemp("pair")
    one, two = fleet.nodes[:2]
    flows: dict[str, list[dict[str, object]]] = {
        node.name: [
            {"direction": way, "peers": [peer.address], "port": 0, "why": "workers of one engine"}
            for way in ("in", "out")
        ]
        for node, peer in ((one, two), (two, one))
    }
    run = together(fleet, folder, flows)
    assert run.code == 0, run.text[-3000:]
    for node in (one, two):
        node.root(f"systemd-run --quiet --unit=worker python3 -m http.server {PORT} --directory /srv")
        assert wait(lambda node=node: node.root(f"ss -ltnH 'sport = :{PORT}'") != "", 10)  # type: ignore[misc]
    yield one, two
    for node in (one, two):
        node.root("systemctl stop worker.service")
    run = together(fleet, folder, {})
    assert run.code == 0, run.text[-3000:]


def calls(caller: Node, called: Node) -> str:
    command = (
        f"curl --silent --output /dev/null --max-time 3 --write-out '%{{http_code}}' http://{called.address}:{PORT}/"
    )
    return caller.root(command, check=False)


def test_peers_reach_each_other(pair: tuple[Node, Node]) -> None:
    one, two = pair
    assert (calls(one, two), calls(two, one)) == ("200", "200")


def test_nobody_else_reaches_them(fleet: Fleet, pair: tuple[Node, Node]) -> None:
    # A node of the same zone, a balancer, and the controller, which administrates them.
    for stranger in (fleet.nodes[2], fleet.balancers[0]):
        assert [calls(stranger, node) for node in pair] == ["000", "000"]
    for node in pair:
        # It is there, and only the firewall is in the way.
        assert calls(node, node) == "200"


def test_they_reach_nobody_else_in_this_way(fleet: Fleet, pair: tuple[Node, Node]) -> None:
    third = fleet.nodes[2]
    third.root(f"systemd-run --quiet --unit=worker python3 -m http.server {PORT} --directory /srv")
    assert wait(lambda: third.root(f"ss -ltnH 'sport = :{PORT}'") != "", 10)
    try:
        assert [calls(node, third) for node in pair] == ["000", "000"]
    finally:
        third.root("systemctl stop worker.service")
