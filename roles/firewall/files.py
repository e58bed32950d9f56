"""Files of the firewall role."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from ipaddress import ip_network

from quench import WORLD, Flow, Managed, ManagedFile, Problem, template, zone_of
from roles.firewall.settings import FirewallSettings, Network

FIREWALLD = "firewalld.service"
FORWARD = "quench-forward.service"


_ETC = "/etc/firewalld"
# What is invalid in a rule, it only warns of, and leaves the rule out.
_CHECK = (
    'said=$(firewall-offline-cmd --check-config 2>&1) && ! echo "$said" | grep -E "ERROR|WARNING" '
    '|| { echo "$said" >&2; false; }'
)


def packages(settings: FirewallSettings) -> list[str]:
    """firewalld, and what it needs. netbase: protocols by name, on which Debian's package does not depend."""
    return ["firewalld", "nftables", *(["netbase"] if not settings.platform.startswith("rhel") else [])]


def ssh(settings: FirewallSettings) -> Flow:
    """The way in of those who look after the host."""
    return Flow("firewall", "in", tuple(settings.ssh_zones), settings.ssh_port, "administration by SSH")


def files(settings: FirewallSettings, flows: Sequence[Flow]) -> list[Managed]:
    """All files of the role, for the flows that the roles of the host have declared."""
    values = {"settings": settings}
    zones = [zone for zone in settings.zones if settings.zones[zone]]
    return [
        ManagedFile(
            f"{_ETC}/firewalld.conf",
            template("firewall", f"{_ETC}/firewalld.conf", values),
            check=_CHECK,
            restarts=FIREWALLD,
        ),
        *(
            ManagedFile(
                f"{_ETC}/zones/{zone}.xml",
                template(
                    "firewall",
                    f"{_ETC}/zones/zone.xml",
                    values
                    | {
                        "zone": zone,
                        "networks": settings.networks([zone]),
                        "ports": _ports(flows, zone),
                        "peers": _peers(settings, flows, zone),
                    },
                    comment="<!--",
                ),
                check=_CHECK,
                reloads=FIREWALLD,
            )
            for zone in zones
        ),
        ManagedFile(
            f"{_ETC}/zones/closed.xml",
            template(
                "firewall",
                f"{_ETC}/zones/closed.xml",
                values | {"ports": _ports(flows, WORLD)},
                comment="<!--",
            ),
            check=_CHECK,
            reloads=FIREWALLD,
        ),
        *(
            ManagedFile(
                f"{_ETC}/zones/{zone}.xml",
                template("firewall", f"{_ETC}/zones/{zone}.xml", values, comment="<!--"),
                check=_CHECK,
                reloads=FIREWALLD,
            )
            for zone in ("trusted", "docker")
        ),
        ManagedFile(
            f"{_ETC}/policies/outgoing.xml",
            template(
                "firewall",
                f"{_ETC}/policies/outgoing.xml",
                values | {"destinations": _destinations(settings, flows)},
                comment="<!--",
            ),
            check=_CHECK,
            reloads=FIREWALLD,
        ),
        ManagedFile(
            f"/etc/systemd/system/{FIREWALLD}.d/quench.conf",
            template("firewall", f"/etc/systemd/system/{FIREWALLD}.d/quench.conf", values),
            restarts=FIREWALLD,
        ),
        ManagedFile(
            "/etc/nftables/quench-forward.nft",
            template("firewall", "/etc/nftables/quench-forward.nft", values),
            check="nft --check --file /etc/nftables/quench-forward.nft",
            restarts=FORWARD,
        ),
        ManagedFile(
            f"/etc/systemd/system/{FORWARD}",
            template("firewall", f"/etc/systemd/system/{FORWARD}", values),
            check=f"systemd-analyze verify --man=no {FORWARD}",
            restarts=FORWARD,
        ),
    ]


Port = tuple[int, str]


def _ports(flows: Sequence[Flow], zone: str) -> dict[Port, list[str]]:
    """What a zone may call on the host, and why."""
    found: dict[Port, list[str]] = {}
    for flow in flows:
        if flow.direction == "in" and zone in flow.zones:
            found.setdefault((flow.port, flow.protocol), []).append(f"{flow.role}: {flow.why}")
    return found


def _peers(settings: FirewallSettings, flows: Sequence[Flow], zone: str) -> dict[Port, dict[Network, list[str]]]:
    """What single hosts of a zone may call on the host, and why. Port 0: all of the protocol."""
    found: dict[Port, dict[Network, list[str]]] = {}
    for flow in flows:
        for peer in flow.peers if flow.direction == "in" else ():
            if zone_of(peer, settings.zones) == zone:
                networks = found.setdefault((flow.port, flow.protocol), {})
                networks.setdefault(ip_network(peer), []).append(f"{flow.role}: {flow.why}")
    return found


def _destinations(settings: FirewallSettings, flows: Sequence[Flow]) -> dict[Port, dict[Network | None, list[str]]]:
    """What the host may call: for each port the networks, and None for the world, each with the reasons."""
    found: dict[Port, dict[Network | None, list[str]]] = {}
    for flow in flows:
        if flow.direction == "out":
            networks: list[Network | None] = [*settings.networks(flow.zones), *map(ip_network, flow.peers)]
            for network in [*networks, *([None] if WORLD in flow.zones else [])]:
                reasons = found.setdefault((flow.port, flow.protocol), {}).setdefault(network, [])
                reasons.append(f"{flow.role}: {flow.why}")
    return found


def opening(settings: FirewallSettings, flows: Sequence[Flow]) -> str:
    """Shell that lets flows through beside what passes already, until firewalld is reloaded: firewall-cmd(1)."""
    rules = [
        _rule("destination", network, port)
        for port, networks in _destinations(settings, flows).items()
        for network in (networks if port[0] else ())
    ]
    added = {"--policy=outgoing": [f"--add-rich-rule={rule}" for rule in rules]}
    for zone, name in {**{zone: zone for zone in settings.zones}, "closed": WORLD}.items():
        added[f"--zone={zone}"] = [f"--add-port={port}/{protocol}" for port, protocol in _ports(flows, name)]
    # A zone that is new as well comes with its file.
    return "; ".join(f"{_firewall_cmd(place, *words)} || true" for place, words in added.items() if words) or ":"


def opening_of_another(settings: FirewallSettings, flows: Sequence[Flow]) -> str:
    """The same for the firewalld of a host that Quench has not been on: it knows no zone, and lets everything out."""
    zones: dict[str, list[Network | None]] = {zone: [*settings.networks([zone])] for zone in settings.zones}
    zones[WORLD] = [None]
    rules = [
        _rule("source", network, port)
        for zone, networks in zones.items()
        for port in _ports(flows, zone)
        for network in networks
    ]
    return _firewall_cmd(*(f"--add-rich-rule={rule}" for rule in rules)) if rules else ":"


def _rule(side: str, network: Network | None, port: Port) -> str:
    where = f'family="ipv{network.version}" {side} address="{network}" ' if network else ""
    return f'rule {where}port port="{port[0]}" protocol="{port[1]}" accept'


def _firewall_cmd(*words: str) -> str:
    return shlex.join(["firewall-cmd", "--quiet", *words])


def ways(managed: Sequence[Managed]) -> list[ManagedFile]:
    """The files that decide on what passes."""
    return [file for file in managed if isinstance(file, ManagedFile) and file.reloads == FIREWALLD]


def impossible(host: str, settings: FirewallSettings, flows: Sequence[Flow]) -> Iterator[Problem]:
    """What is wrong with the flows of a host: zones that nobody defined, peers in none of them, and the world without a
    word about it.
    """
    for flow in flows:
        for zone in flow.zones:
            if zone not in (WORLD, *settings.zones):
                what = f"{flow.role} has a flow {'from' if flow.direction == 'in' else 'to'} {zone!r}: {flow.why}"
                yield Problem(host, "firewall_zones", what, f"define {zone}, if only as an empty list")
        for peer in flow.peers:
            if zone_of(peer, settings.zones) is None:
                way = "from" if flow.direction == "in" else "to"
                what = f"{flow.role} has a flow {way} {peer}, which is in no zone: {flow.why}"
                yield Problem(host, "firewall_zones", what, f"put the network of {peer} into one of the zones")
        name = f"world-{flow.direction}"
        if WORLD in flow.zones and name not in settings.relaxations:
            what = f"{flow.role} opens port {flow.port} {'to' if flow.direction == 'in' else 'of'} the whole world"
            remedy = f"name zones instead, or set {name} with a reason, if that is meant"
            yield Problem(host, "firewall_relaxations", f"{what}: {flow.why}", remedy)
