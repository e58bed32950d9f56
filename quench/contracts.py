"""What roles tell each other. A role knows these types and never another role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Literal

# Under this name balancers ask a model whether it answers. No client can be called so, and no log shows it.
HEALTH_CLIENT = ":health"


@dataclass(frozen=True, order=True)
class Route:
    """A method and an exact path that clients may call."""

    method: str
    path: str


@dataclass(frozen=True)
class Engine:
    """A model that is served on a host's loopback address, by processes of a group, to so many requests at once."""

    model: str
    port: int
    routes: tuple[Route, ...]
    group: str = "root"
    concurrent: int = 256


@dataclass(frozen=True)
class Node:
    """An inference node, as a balancer calls it.

    Args:
        server_name: the name in the node's certificate.
        weight: share of the requests, beside the weights of the others; 0 is none.
        standby: it gets requests only when no other node of a pool can.
    """

    name: str
    address: str
    port: int
    server_name: str
    engines: tuple[Engine, ...]
    weight: int = 100
    standby: bool = False


@dataclass(frozen=True)
class Certificate:
    """A certificate that the host has got by itself: paths there. Empty: the service's certificate comes as a file.

    Args:
        group: who may read the key.
        names: what it was asked for with.
    """

    certificate: str = ""
    private_key: str = ""
    group: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class LogFiles:
    """Log files of a service, and how it is told to open new ones. Empty: the file is copied and then emptied."""

    service: str
    paths: tuple[str, ...]
    owner: str
    reopen: str


@dataclass(frozen=True, order=True)
class Flow:
    """Packets that pass between a host and the zones and peers named; what no role declares does not pass.

    Args:
        role: who declares it.
        direction: `in`: the others may call the host; `out`: the host may call them.
        zones: names of `firewall_zones`, or `world` for whatever is in none of them.
        port: on the side that is called. 0: all of the protocol, which only peers may have.
        why: for the auditor. Peers that have the same reason are shown as one group.
        protocol: vrrp has no ports: RFC 9568.
        peers: addresses of single hosts, each in a zone. The rest of their zones has nothing of this.
    """

    role: str
    direction: Literal["in", "out"]
    zones: tuple[str, ...]
    port: int
    why: str
    protocol: Literal["tcp", "udp", "vrrp"] = "tcp"
    peers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what would let through something else than it says."""
        for peer in self.peers:
            if str(ip_address(peer)) != peer:
                raise ValueError(f"{self.role}: write the peer {peer} as {ip_address(peer)}")
        if self.protocol == "vrrp" and self.port:
            raise ValueError(f"{self.role}: vrrp has no ports, and this flow has {self.port}")
        if not self.port and self.zones:
            raise ValueError(f"{self.role}: a flow of a whole protocol is for single peers, not for {self.zones}")


@dataclass(frozen=True)
class Gpus:
    """The GPUs of a host, and the versions that go with their driver. None: Quench looks after no driver here.

    Args:
        branches: the oldest branch of the driver that runs a CUDA, by the CUDA's major version.
    """

    count: int = 0
    driver: str = ""
    cuda: str = ""
    dcgm: str | None = None
    exporter: str | None = None
    toolkit: str | None = None
    mig: str | None = None
    sliceable: bool = False
    branches: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class HostEngine:
    """DCGM's host engine, and the version of the exporter that goes with it. Empty: there is none here."""

    address: str = ""
    exporter: str | None = None


@dataclass(frozen=True)
class Slices:
    """GPUs, by index, that are cut into MIG slices."""

    gpus: tuple[int, ...] = ()
