"""What may pass between whom: roles declare it, the firewall lets it through, auditors read it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Protocol, cast
from urllib.parse import urlsplit

from quench.contracts import Flow
from quench.plan import HostPlan, Plan
from quench.problems import Problem, Refused

# Whatever is in no zone.
WORLD = "world"
_PORTS = {"http": 80, "https": 443}
# More addresses than this would hide the rest of a line.
_MOST_PEERS = 4


def download(role: str, url: str | None, zones: Sequence[str], why: str) -> Flow:
    """The flow to where something is fetched from.

    Args:
        url: a mirror of the house, in one of the zones; None: the publisher's own server, which is in none.
    """
    if url is None:
        return Flow(role, "out", (WORLD,), _PORTS["https"], why)
    parts = urlsplit(url)
    return Flow(role, "out", tuple(zones), parts.port or _PORTS[parts.scheme], why)


def zone_of(address: str, zones: Mapping[str, Sequence[str]]) -> str | None:
    """The zone that an address is in, by the networks of each zone. Zones do not overlap."""
    found = (zone for zone, texts in zones.items() for text in texts if ip_address(address) in ip_network(text))
    return next(found, None)


class _Firewall(Protocol):
    """What is read of the firewall role's settings. The kit knows no role."""

    zone: str
    zones: Mapping[str, Sequence[str]]
    relaxations: Mapping[str, str]


@dataclass(frozen=True, order=True)
class Row:
    """One way through: from a zone, to a port in a zone, with all hosts that let it through.

    Args:
        reasons: why the world is let in or called. Empty for a row between two zones.
        peers: addresses of single hosts. Nobody else of their zone has this. Empty: the whole zone.
    """

    source: str
    target: str
    port: int
    protocol: str
    why: str
    role: str
    hosts: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()

    @property
    def world(self) -> bool:
        """Whether this is a relaxation."""
        return WORLD in (self.source, self.target)

    @property
    def service(self) -> str:
        """Port and protocol, as auditors write them."""
        if self.port:
            return f"{self.port}/{self.protocol}"
        return self.protocol if self.protocol == "vrrp" else f"all/{self.protocol}"

    @property
    def what(self) -> str:
        """The reason, and for whom alone. Of many peers only the JSON has all."""
        if not self.peers:
            return self.why
        few = len(self.peers) <= _MOST_PEERS
        return f"{self.why}; only {', '.join(self.peers) if few else counted(len(self.peers), 'peer')}"


@dataclass(frozen=True)
class Matrix:
    """All that may pass between zones and the hosts of a plan.

    Args:
        zones: networks of each zone.
        hosts: zone of each host.
        rows: sorted by zones, with those of the world last.
    """

    zones: dict[str, list[str]]
    hosts: dict[str, str]
    rows: list[Row]

    def neighbours(self, row: Row) -> list[str]:
        """All hosts of the zones that a row's hosts are in: those that might have the same row."""
        zones = {self.hosts[host] for host in row.hosts}
        return [host for host, zone in self.hosts.items() if zone in zones]

    def hosts_of(self, row: Row) -> str:
        """The hosts of a row in a few words: names if they are few, or how many of their zone."""
        if len(row.hosts) <= 3:
            return ", ".join(row.hosts)
        total = len(self.neighbours(row))
        return f"all {total}" if len(row.hosts) == total else f"{len(row.hosts)} of {total}"


def matrix(plan: Plan) -> Matrix:
    """The flows of all hosts, merged.

    Raises:
        Refused: if a host has no firewall, or if hosts do not mean the same by a zone's name.
    """
    firewalls = {host: _firewall(host_plan) for host, host_plan in sorted(plan.items())}
    problems = [problem for host, firewall in firewalls.items() for problem in _problems(plan[host], firewall)]
    if problems:
        raise Refused(problems)
    known = {host: firewall for host, firewall in firewalls.items() if firewall is not None}
    zones = _zones(known)
    hosts = {host: firewall.zone for host, firewall in known.items()}
    return Matrix(zones, hosts, sorted(_rows(plan, known), key=lambda row: (row.world, row)))


def _firewall(host_plan: HostPlan) -> _Firewall | None:
    # Of two deploy files with a firewall each, the second lets through what both have declared.
    found = [cast("_Firewall", settings) for settings in host_plan.settings if settings.prefix == "firewall"]
    return found[-1] if found else None


def _problems(host_plan: HostPlan, firewall: _Firewall | None) -> Iterator[Problem]:
    if firewall is None:
        what = "the deploy has no firewall role, so nothing holds its flows to what is declared"
        yield Problem(host_plan.host, "deploy", what, "put firewall() at the end of the deploy file")
        return
    for flow in host_plan.flows:
        for zone in flow.zones:
            if zone not in (WORLD, *firewall.zones):
                what = f"{flow.role} has a flow with {zone!r}, which is no zone: {flow.why}"
                yield Problem(host_plan.host, "firewall_zones", what, f"define {zone}, if only as an empty list")
        for peer in flow.peers:
            if zone_of(peer, firewall.zones) is None:
                what = f"{flow.role} has a flow with {peer}, which is in no zone: {flow.why}"
                remedy = f"put the network of {peer} into one of the zones"
                yield Problem(host_plan.host, "firewall_zones", what, remedy)


def _zones(firewalls: Mapping[str, _Firewall]) -> dict[str, list[str]]:
    found: dict[str, tuple[str, list[str]]] = {}
    problems = []
    for host, firewall in firewalls.items():
        for zone, texts in firewall.zones.items():
            networks = _sorted_networks(texts)
            first, former = found.setdefault(zone, (host, networks))
            if networks != former:
                what = f"the networks of {zone} are not those that it has on {first}"
                remedy = "make them the same in group_data, or choose hosts that agree: --limit"
                problems.append(Problem(host, "firewall_zones", what, remedy))
    if problems:
        raise Refused(problems)
    return {zone: networks for zone, (_, networks) in sorted(found.items())}


def _sorted_networks(texts: Sequence[str]) -> list[str]:
    networks = [ip_network(text) for text in texts]
    return [str(network) for network in sorted(networks, key=lambda network: (network.version, network))]


def _rows(plan: Plan, firewalls: Mapping[str, _Firewall]) -> Iterator[Row]:
    # Zones and peers are rows of their own: what a zone has would hide that peers have more.
    found: dict[tuple[Row, bool], list[tuple[str, str, str]]] = {}
    for host, firewall in firewalls.items():
        for flow in plan[host].flows:
            for source, target, peer in _ends(flow, firewall):
                row = Row(source, target, flow.port, flow.protocol, flow.why, flow.role)
                reason = firewall.relaxations.get(f"world-{flow.direction}", "") if row.world else ""
                found.setdefault((row, bool(peer)), []).append((host, " ".join(reason.split()), peer))
    for (row, _), declared in found.items():
        hosts = sorted({host for host, _, _ in declared})
        reasons = sorted({reason for _, reason, _ in declared if reason})
        peers = _sorted_addresses({peer for _, _, peer in declared if peer})
        yield replace(row, hosts=tuple(hosts), reasons=tuple(reasons), peers=tuple(peers))


def _sorted_addresses(texts: Iterable[str]) -> list[str]:
    addresses = [ip_address(text) for text in texts]
    return [str(address) for address in sorted(addresses, key=lambda address: (address.version, address))]


def _ends(flow: Flow, firewall: _Firewall) -> Iterator[tuple[str, str, str]]:
    """From and to which zone a flow goes, and which address of the other zone alone is meant, if it is one."""
    others = [(zone, "") for zone in flow.zones]
    others += [(zone_of(peer, firewall.zones) or WORLD, peer) for peer in flow.peers]
    for zone, peer in others:
        # A zone without networks is one that the site does not have: no packet comes from there.
        if zone == WORLD or firewall.zones[zone]:
            yield (zone, firewall.zone, peer) if flow.direction == "in" else (firewall.zone, zone, peer)


_HEADER = ("FROM", "TO", "PORT/PROTOCOL", "WHY", "ROLE", "HOSTS")


def table(found: Matrix) -> list[str]:
    """The matrix in lines of text. Those that begin with `!` tell of relaxations."""
    cells = [_HEADER]
    cells += [(row.source, row.target, row.service, row.what, row.role, found.hosts_of(row)) for row in found.rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADER))]
    marks = [" ", *("!" if row.world else " " for row in found.rows)]
    lines = [
        f"{mark} {'  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))}".rstrip()
        for mark, line in zip(marks, cells, strict=True)
    ]
    return [*lines, "", *notes(found)]


def notes(found: Matrix) -> list[str]:
    """What the rows do not say by themselves, a sentence each."""
    lines = []
    for direction, rows in [
        ("from", [row for row in found.rows if row.source == WORLD]),
        ("to", [row for row in found.rows if row.target == WORLD]),
    ]:
        if rows:
            reasons = sorted({reason for row in rows for reason in row.reasons}) or ["no reason is given"]
            lines.append(f"! {direction} the world, which is whatever is in no zone: {'; '.join(reasons)}")
    empty = [zone for zone, networks in found.zones.items() if not networks and zone not in found.hosts.values()]
    if empty:
        lines.append(f"no networks, so nothing comes from there or goes there: {', '.join(empty)}")
    zones = len(set(found.hosts.values()))
    lines += [
        "not listed: answers to what is listed, ICMP and DHCP, without which a host would have no address",
        f"everything else is dropped, in and out; {counted(len(found.hosts), 'host')} in {counted(zones, 'zone')}",
    ]
    return lines


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def to_json(found: Matrix) -> str:
    """The matrix for programs."""
    rows = [
        {
            "from": row.source,
            "to": row.target,
            "port": row.port,
            "protocol": row.protocol,
            "why": row.why,
            "role": row.role,
            "hosts": list(row.hosts),
            "peers": list(row.peers),
            "world": row.world,
            "reasons": list(row.reasons),
        }
        for row in found.rows
    ]
    return json.dumps({"zones": found.zones, "hosts": found.hosts, "flows": rows}, indent=2)
