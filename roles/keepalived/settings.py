"""Settings of the keepalived role."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface
from typing import ClassVar

from pydantic import Field, ValidationInfo, field_validator

from quench.settings import RoleSettings


class KeepalivedSettings(RoleSettings):
    """Virtual addresses over several balancers: one of them has the addresses, as long as its frontend answers."""

    prefix: ClassVar[str] = "keepalived"

    addresses: list[str] = Field(
        min_length=1,
        description=(
            "Virtual addresses that clients call, with prefix length. They move together. IPv4 and IPv6 may be mixed; "
            "one at least is of the kind that the balancers' own addresses are."
        ),
        examples=[["10.0.2.10/24"], ["10.0.2.10/24", "fd00:2::10/64"]],
    )
    interface: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$",
        description="Network interface that gets the virtual addresses, and that has this host's own.",
        examples=["eth0"],
    )
    router_id: int = Field(
        ge=1,
        le=255,
        description="Number of this group of balancers. No other VRRP router of the network may have it.",
        examples=[51],
    )
    balancers: list[str] = Field(
        min_length=2,
        max_length=16,
        description=(
            "Own addresses of all balancers of the group, this host's among them: the same list on each. Of those that "
            "start at the same time, the first in the list gets the virtual addresses."
        ),
        examples=[["10.0.2.11", "10.0.2.12"]],
    )
    address: str = Field(description="This host's own address, one of keepalived_balancers.", examples=["10.0.2.11"])
    check_port: int = Field(default=443, ge=1, le=65535, description="TCP port of this host's frontend.")
    check_path: str = Field(
        default="/alive",
        pattern=r"^/[A-Za-z0-9._~/-]*$",
        description="Path that the frontend is asked for each second. Any answer by HTTP will do, an error as well.",
        examples=["/health"],
    )
    check_server_name: str = Field(
        pattern=r"^[a-z0-9.-]+$",
        description="Name that the frontend is called by, as clients do, so that it shows the certificate for it.",
        examples=["llm.example.org"],
    )

    @field_validator("addresses")
    @classmethod
    def _addresses_are_of_hosts(cls, value: list[str]) -> list[str]:
        found = [_interface(text) for text in value]
        if len({interface.ip for interface in found}) < len(found):
            raise ValueError("names an address twice; name each once")
        return value

    @field_validator("balancers")
    @classmethod
    def _balancers_are_of_one_kind(cls, value: list[str], info: ValidationInfo) -> list[str]:
        for text in value:
            _own(text)
        if len(set(value)) < len(value):
            raise ValueError("names a balancer twice; name each once")
        versions = {ip_address(text).version for text in value}
        if len(versions) > 1:
            raise ValueError("mixes IPv4 and IPv6; balancers talk to each other by one of them")
        virtual = [ip_interface(text).ip for text in info.data.get("addresses", [])]
        for address in virtual:
            if str(address) in value:
                raise ValueError(f"{address} is a virtual address; name the balancers' own ones")
        if virtual and versions.isdisjoint(address.version for address in virtual):
            raise ValueError(f"are not of the kind of {virtual[0]}; give both IPv4 addresses, or both IPv6 addresses")
        return value

    @field_validator("address")
    @classmethod
    def _address_is_of_a_balancer(cls, value: str, info: ValidationInfo) -> str:
        balancers = info.data.get("balancers")
        if balancers is not None and value not in balancers:
            raise ValueError(f"{value} is not among keepalived_balancers; there are {', '.join(balancers)}")
        return value

    @property
    def peers(self) -> tuple[str, ...]:
        """Addresses of the other balancers."""
        return tuple(balancer for balancer in self.balancers if balancer != self.address)

    @property
    def priority(self) -> int:
        """The higher, the earlier in the list. Near the top: the lower it is, the later a host takes over."""
        return 254 - self.balancers.index(self.address)

    @property
    def version(self) -> int:
        """4 or 6, by which the balancers talk to each other."""
        return ip_address(self.address).version

    @property
    def interfaces(self) -> list[IPv4Interface | IPv6Interface]:
        """The virtual addresses, with prefix length."""
        return [ip_interface(text) for text in self.addresses]


def _interface(text: str) -> IPv4Interface | IPv6Interface:
    try:
        interface = ip_interface(text)
    except ValueError:
        raise ValueError(f"{text!r} is no address with prefix length; write it as 10.0.2.10/24") from None
    if "/" not in text:
        raise ValueError(f"{text} has no prefix length; write it as 10.0.2.10/24")
    network = interface.network
    ends = (network.network_address, network.broadcast_address) if network.num_addresses > 2 else ()
    if interface.ip in ends or not _is_for_hosts(interface.ip):
        raise ValueError(f"{text} is no address that clients could call; name a free one of the balancers' network")
    return interface


def _own(text: str) -> None:
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is no address; write it as 10.0.2.11, without prefix length") from None
    if not _is_for_hosts(address):
        raise ValueError(f"{text} is no address of a balancer; name the one that the others reach it by")
    if str(address) != text:
        raise ValueError(f"{text} has a shorter form; write it as {address}")


def _is_for_hosts(address: IPv4Address | IPv6Address) -> bool:
    special = address.is_loopback or address.is_unspecified or address.is_multicast or address.is_link_local
    return not special
