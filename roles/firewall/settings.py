"""Settings of the firewall role."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import combinations
from typing import ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from quench.contracts import Flow
from quench.flows import WORLD
from quench.settings import EVERY_PLATFORM, Model, Platform, RoleSettings

# The first is everyone; then firewalld's zone for everyone, and those of docker and podman.
_RESERVED = (WORLD, "closed", "docker", "trusted")
# A zone is a part of the house. What is larger than this is the world under another name.
_WIDEST = {4: 8, 6: 32}


Network = IPv4Network | IPv6Network


class SiteFlow(Model):
    """What passes between the host and others for a service that no role of Quench looks after."""

    direction: Literal["in", "out"] = Field(
        description="`in`: the others may call the host; `out`: the host may call them."
    )
    zones: list[str] = Field(
        default=[],
        description="Names of `firewall_zones`, or `world` for whatever is in none of them, which needs a relaxation.",
        examples=[["app"]],
    )
    peers: list[str] = Field(
        default=[],
        description="Addresses of single hosts, each in a zone. The rest of their zones has nothing of this.",
        examples=[["10.0.1.12"]],
    )
    port: int = Field(
        ge=0, le=65535, description="On the side that is called. 0: all of the protocol, which only peers may have."
    )
    protocol: Literal["tcp", "udp", "vrrp"] = Field(default="tcp", description="vrrp has no ports: 0.")
    why: str = Field(description="For the auditor, in a few words.", examples=["queries of the applications"])

    @field_validator("peers")
    @classmethod
    def _peers_are_addresses(cls, value: list[str]) -> list[str]:
        for peer in value:
            try:
                address = str(ip_address(peer))
            except ValueError:
                raise ValueError(f"{peer!r} is no address; names and networks are none, write 10.0.1.12") from None
            if address != peer:
                raise ValueError(f"{peer!r} is not how {address} is written; write {address}")
        return value

    @field_validator("why")
    @classmethod
    def _why_is_a_reason(cls, value: str) -> str:
        if not _is_reason(value) or "\n" in value:
            raise ValueError(f"{value!r} is no reason; say why, in a few words, for the auditor")
        return value

    @model_validator(mode="after")
    def _means_somebody(self) -> Self:
        if not self.zones and not self.peers:
            raise ValueError("has neither zones nor peers; name whom it is with")
        if self.protocol == "vrrp" and self.port:
            raise ValueError(f"vrrp has no ports, and this flow has {self.port}; set port to 0")
        if not self.port and self.zones:
            raise ValueError("is all of a protocol, which only peers may have; set the port, or name peers, no zones")
        return self

    def flow(self) -> Flow:
        """The same in the form in which roles declare theirs."""
        return Flow("site", self.direction, tuple(self.zones), self.port, self.why, self.protocol, tuple(self.peers))


class FirewallSettings(RoleSettings):
    """Zones, and what may pass between them and the host. Everything else is dropped, in and out."""

    prefix: ClassVar[str] = "firewall"
    platforms: ClassVar[tuple[Platform, ...]] = EVERY_PLATFORM

    zones: dict[str, list[str]] = Field(
        min_length=1,
        description=(
            "Networks of each zone, IPv4 and IPv6. Roles declare flows from and to zones by these names. "
            "A zone that the site does not have is an empty list."
        ),
        examples=[{"management": ["10.0.9.0/24", "fd00:9::/64"], "app": ["10.0.1.0/24"], "dmz": []}],
    )
    zone: str = Field(
        description="Zone of the host itself, for the matrix of flows: `quench flows`.", examples=["inference"]
    )
    ssh_zones: list[str] = Field(
        default=["management"], min_length=1, description="Zones that may log in. The controller is in one of them."
    )
    ssh_port: int = Field(default=22, ge=1, le=65535, description="TCP port of sshd.")
    flows: list[SiteFlow] = Field(
        default=[],
        description=(
            "What passes beside the flows that roles declare: for services of the host that are not Quench's business."
        ),
        examples=[[{"direction": "in", "zones": ["app"], "port": 5432, "why": "queries of the applications"}]],
    )
    rollback_seconds: int = Field(
        default=60,
        ge=10,
        le=600,
        description="Seconds after which the host goes back to its former rules, if the controller does not get in.",
    )
    log_denied: Literal["off", "unicast", "all"] = Field(
        default="off",
        description="Which dropped packets the kernel logs. A port scan then fills the journal.",
    )
    relaxations: dict[Literal["world-in", "world-out"], str] = Field(
        default={},
        description=(
            "What is relaxed, with the reason, which is rendered for the auditor. `world-in`: flows from the zone "
            "`world`, which is everyone; `world-out`: flows to it."
        ),
        examples=[{"world-out": "packages come from the distribution's own mirrors, change 4711"}],
    )

    @field_validator("zones")
    @classmethod
    def _zones_are_parts_of_the_house(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        networks: list[tuple[str, Network]] = []
        for zone, texts in value.items():
            # firewalld.zone(5): at most 17 characters.
            if not (zone.isascii() and zone.replace("-", "").isalnum() and zone.islower() and len(zone) <= 17):
                raise ValueError(f"{zone!r} cannot name a zone; use up to 17 lower-case letters, digits and '-'")
            if zone in _RESERVED:
                raise ValueError(f"{zone!r} is not yours to define; take another name")
            networks += [(zone, _network(zone, text)) for text in texts]
        for (first, one), (second, other) in combinations(networks, 2):
            if one.version == other.version and one.overlaps(other):
                raise ValueError(f"{one} of {first} and {other} of {second} overlap; give each address one zone")
        return value

    @field_validator("zone")
    @classmethod
    def _zone_is_known(cls, value: str, info: ValidationInfo) -> str:
        _known([value], info)
        return value

    @field_validator("ssh_zones")
    @classmethod
    def _ssh_zones_are_known(cls, value: list[str], info: ValidationInfo) -> list[str]:
        _known([zone for zone in value if zone != WORLD], info)
        return value

    @field_validator("flows")
    @classmethod
    def _flows_are_between_known_zones(cls, value: list[SiteFlow], info: ValidationInfo) -> list[SiteFlow]:
        _known([zone for flow in value for zone in flow.zones if zone != WORLD], info)
        return value

    @field_validator("relaxations")
    @classmethod
    def _relaxations_have_reasons(cls, value: dict[str, str]) -> dict[str, str]:
        for name, reason in value.items():
            if not _is_reason(reason):
                raise ValueError(f"{name} has no reason; say why, in a few words, for the auditor")
        return value

    def networks(self, zones: Sequence[str]) -> list[Network]:
        """Networks of some zones, sorted."""
        found = [ip_network(text) for zone in zones if zone != WORLD for text in self.zones[zone]]
        return sorted(found, key=lambda network: (network.version, network))


def _is_reason(text: str) -> bool:
    # It is rendered into comments of XML, which have no way to write two hyphens.
    return len(text.split()) >= 2 and "--" not in text


def _network(zone: str, text: str) -> Network:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ValueError(f"{zone}: {error}; write it as 10.0.9.0/24 or fd00:9::/64") from None
    if network.prefixlen < _WIDEST[network.version]:
        raise ValueError(
            f"{text} of {zone} is no part of a house; name {WORLD!r} in a role's zones, and relax world-in or world-out"
        )
    return network


def _known(zones: Sequence[str], info: ValidationInfo) -> None:
    for zone in zones:
        if "zones" in info.data and zone not in info.data["zones"]:
            raise ValueError(f"no zone {zone!r} in firewall_zones; there are {', '.join(info.data['zones'])}")
