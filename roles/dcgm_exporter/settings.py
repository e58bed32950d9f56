"""Settings of the dcgm_exporter role."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field, ValidationInfo, field_validator
from typing_extensions import override

from quench import certificates
from quench.problems import Problem
from quench.secrets import SecretRef
from quench.settings import EVERY_PLATFORM, Platform, RoleSettings


class DcgmExporterSettings(RoleSettings):
    """GPU counters for Prometheus: over TLS, to clients with a certificate, on one address of the host."""

    prefix: ClassVar[str] = "dcgm_exporter"
    platforms: ClassVar[tuple[Platform, ...]] = EVERY_PLATFORM

    address: str | None = Field(
        default=None,
        description=(
            "Address of this host on the monitoring network: the exporter listens there and nowhere else. Unset: the "
            "host gets no exporter."
        ),
        examples=["10.0.30.11"],
    )
    port: int = Field(default=9400, ge=1024, le=65535, description="TCP port.")
    client_zones: list[str] = Field(default=["monitoring"], description="Zones in which Prometheus is.")
    clients: list[str] = Field(
        default=[],
        validate_default=True,
        description="Networks of the monitoring zone. Connections from elsewhere are dropped by the kernel.",
        examples=[["10.0.30.0/24"]],
    )
    certificate: str = Field(
        default="",
        description="Certificate and chain in PEM: a file where the run starts. It must carry the address.",
        examples=["secrets/ca/10.0.30.11.crt"],
    )
    private_key: SecretRef | None = Field(
        default=None,
        description="Private key of the certificate in PEM.",
        examples=["file:secrets/ca/10.0.30.11.key"],
    )
    client_ca: str = Field(
        default="",
        description="CA, in PEM, that has signed the certificates of the monitoring servers. Others are refused.",
        examples=["secrets/ca/ca.crt"],
    )
    interval_seconds: int = Field(
        default=10, ge=1, le=300, description="How often the counters are read. The exporter's own default is 30 s."
    )
    xid_window_seconds: int = Field(
        default=300,
        ge=10,
        description="How long an XID error is counted in DCGM_EXP_XID_ERRORS_COUNT: longer than two scrapes.",
    )

    @field_validator("address")
    @classmethod
    def _one_address(cls, value: str | None) -> str | None:
        if value is not None:
            address = ipaddress.ip_address(value)
            if address.is_unspecified or address.is_loopback:
                raise ValueError(f"{value} is no address of the monitoring network; name the host's own address there")
        return value

    @field_validator("clients")
    @classmethod
    def _networks(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if info.data.get("address") and not value:
            raise ValueError("is empty; name the networks of the monitoring servers")
        for network in value:
            if ipaddress.ip_network(network).prefixlen == 0:
                raise ValueError(f"{network} is the whole world; name the networks of the monitoring servers")
        return value

    @override
    def problems(self, host: str) -> Iterator[Problem]:
        if self.address is None:
            return
        if self.private_key is None:
            yield Problem(host, "dcgm_exporter_private_key", "is not set", "name the key: file:PATH or env:NAME")
            return
        yield from certificates.problems(
            host,
            "dcgm_exporter",
            self.certificate,
            self.private_key,
            name=self.address,
            name_key="dcgm_exporter_address",
        )
        yield from certificates.authority_problems(host, "dcgm_exporter_client_ca", self.client_ca)
