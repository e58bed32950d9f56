"""What passes: between all zones, by the lab's own packets; and by nmap, from a host in a client's zone."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from tests.lab.support import Node
from tests.scorecard.lab_tests import cases
from tests.scorecard.score import Score, install, version

PACKAGES = ("nmap",)
# What a host in the zone `app` may call: the gateway.
EXPECTED = {443}
_PORTS = 1000


@dataclass(frozen=True)
class Flows:
    """How many were tried, and those that were open and should not, or the other way round."""

    tried: int
    wrong: list[str]


def prepare(client: Node) -> None:
    install(client, *PACKAGES)


def probe(client: Node, server: Node) -> Flows:
    host = next(item for item in server.lab.hosts if item.name == server.name)
    wrong = []
    for family, address in (("", host.address), ("-6", server.lab.address6(host))):
        text = client.root(f"nmap {family} -n -Pn -T4 --top-ports {_PORTS} -oG - {address}")
        if "1 host up" not in text:
            raise AssertionError(f"nmap has not scanned {address}: {text[-500:]}")
        opened = {int(port) for port in re.findall(r"(\d+)/open/tcp", text)}
        wrong += [f"{address} port {port} is open" for port in sorted(opened - EXPECTED)]
        wrong += [f"{address} port {port} does not answer" for port in sorted(EXPECTED - opened)]
    return Flows(2 * _PORTS, wrong)


def matrix() -> Flows:
    """Run tests/lab/test_firewall_matrix.py: each round tries every pair of zones.

    Raises:
        AssertionError: if no round came to its end, or the lab did not come up.
    """
    found = cases("tests/lab/test_firewall_matrix.py")
    rounds = [case.recorded for case in found if "flows_tried" in case.recorded]
    if not rounds:
        raise AssertionError("no round of the matrix came to its end")
    wrong = [line for one in rounds for line in json.loads(one["flows_wrong"])]
    # A round that fails for another reason than a flow is no proof either.
    wrong += [case.name for case in found if not case.passed and not json.loads(case.recorded.get("flows_wrong", "[]"))]
    return Flows(sum(int(one["flows_tried"]) for one in rounds), wrong)


def score_matrix(flows: Flows) -> Score:
    return Score(
        judge="packets: flows let through or stopped in error",
        before=None,
        after=len(flows.wrong),
        limit=0,
        at_most=True,
        findings=flows.wrong,
        notes=[
            f"{flows.tried} flows tried between six zones and the world, over IPv4 and IPv6, TCP and UDP: as they are, "
            "with containers that publish ports, after a reload, after a reboot: tests/lab/test_firewall_matrix.py."
        ],
    )


def score_nmap(client: Node, flows: Flows) -> Score:
    return Score(
        judge="nmap: ports open or shut in error",
        before=None,
        after=len(flows.wrong),
        limit=0,
        at_most=True,
        findings=flows.wrong,
        notes=[
            f"{flows.tried} flows tried from a host in the zone app: TCP, the {_PORTS} commonest ports, over IPv4 and "
            "IPv6.",
            f"nmap {version(client, 'nmap')}.",
        ],
    )
