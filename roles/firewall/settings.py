"""Settings of the firewall role."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import combinations
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from quench.flows import WORLD
from quench.settings import EVERY_PLATFORM, Platform, RoleSettings

# The first is everyone; then firewalld's zone for everyone, and those of docker and podman.
_RESERVED = (WORLD, "closed", "docker", "trusted")
# A zone is a part of the house. What is larger than this is the world under another name.
_WIDEST = {4: 8, 6: 32}


Network = IPv4Network | IPv6Network


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

    @field_validator("relaxations")
    @classmethod
    def _relaxations_have_reasons(cls, value: dict[str, str]) -> dict[str, str]:
        for name, reason in value.items():
            if len(reason.split()) < 2 or "--" in reason:
                raise ValueError(f"{name} has no reason; say why, in a few words, for the auditor")
        return value

    def networks(self, zones: Sequence[str]) -> list[Network]:
        """Networks of some zones, sorted."""
        found = [ip_network(text) for zone in zones if zone != WORLD for text in self.zones[zone]]
        return sorted(found, key=lambda network: (network.version, network))


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
