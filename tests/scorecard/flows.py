"""Which ports answer a host in a client's zone. PARTIAL: one zone, TCP, the ports that nmap holds to be the commonest.

The whole matrix of zones and flows belongs to the lab's tests. Once they tell what they tried and what was wrong,
`score` is the place to take their counts from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.lab.support import Node
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


def score(client: Node, flows: Flows) -> Score:
    return Score(
        judge="nmap: ports open or shut in error",
        before=None,
        after=len(flows.wrong),
        limit=0,
        at_most=True,
        findings=flows.wrong,
        notes=[
            f"PARTIAL: {flows.tried} flows tried from a host in the zone app: TCP, the {_PORTS} commonest ports, "
            "over IPv4 and IPv6. Flows from other zones, outgoing ones and UDP: not yet.",
            f"nmap {version(client, 'nmap')}.",
        ],
    )
