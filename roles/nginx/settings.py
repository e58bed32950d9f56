"""Settings of the nginx role."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field, field_validator
from typing_extensions import override

from quench import certificates
from quench.keyring import Client, checked
from quench.problems import Problem
from quench.secrets import SecretRef
from quench.settings import RoleSettings


class NginxSettings(RoleSettings):
    """nginx in front of the engines: TLS, keys, limits, an allow-list of exact paths."""

    prefix: ClassVar[str] = "nginx"

    server_name: str = Field(
        pattern=r"^[a-z0-9.-]+$",
        description="Name that clients use. The certificate must carry it.",
        examples=["llm.example.org"],
    )
    port: int = Field(default=443, ge=1, le=65535, description="TCP port for clients.")
    client_zones: list[str] = Field(default=["app", "dmz"], description="Zones in which clients are.")
    certificate: str | None = Field(
        default=None,
        repr=False,
        description="Path, where the run starts, of the certificate and its chain, in PEM. Unset: acme_directory.",
        examples=["secrets/llm.example.org.crt"],
    )
    private_key: SecretRef | None = Field(
        default=None,
        description="Private key of the certificate, in PEM.",
        examples=["file:secrets/llm.example.org.key"],
    )
    clients: dict[str, Client] = Field(
        default={},
        repr=False,
        description="The keyring: clients by the name that the access log carries. Empty behind balancers.",
        examples=[{"team-a": {"keys": [{"sha256": "0f3c...", "expires": "2027-06-30"}]}}],
    )
    balancers: list[Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")]] = Field(
        default=[],
        description=(
            "Balancers in front of this host, by the names in their client certificates. They check the keys; nobody "
            "else is let in."
        ),
        examples=[["lb1.example.org", "lb2.example.org"]],
    )
    balancer_ca: str = Field(
        default="",
        description="CA, in PEM, that has signed the balancers' client certificates: a file where the run starts.",
        examples=["secrets/ca/ca.crt"],
    )
    address: str | None = Field(
        default=None,
        pattern=r"^[0-9A-Za-z.:-]+$",
        description="Address at which balancers reach this host. Unset: ssh_hostname, or else the host's name.",
        examples=["10.0.30.11"],
    )
    weight: int = Field(
        default=100,
        ge=0,
        le=256,
        description="Share of the balancers' requests, beside that of the other hosts with the same model. 0 is none.",
    )
    standby: bool = Field(
        default=False,
        description="Whether balancers come here only when no other host with the same model is up.",
    )
    body_mebibytes: int = Field(
        default=8, ge=1, le=256, description="Largest request, in MiB. It is held in memory while it is routed."
    )
    answer_seconds: int = Field(
        default=600,
        ge=1,
        le=7200,
        description="Longest silence of an engine within one answer, and how long a stopping nginx waits for answers.",
    )

    @field_validator("clients")
    @classmethod
    def _names(cls, value: dict[str, Client]) -> dict[str, Client]:
        return checked(value)

    @field_validator("certificate")
    @classmethod
    def _certificate_is_a_path(cls, value: str | None) -> str | None:
        if value and ("\n" in value or "-----" in value):
            raise ValueError("holds a certificate or a key; give the path of the certificate's file")
        return value

    @override
    def problems(self, host: str) -> Iterator[Problem]:
        if bool(self.clients) == bool(self.balancers):
            what = "has neither clients nor balancers" if not self.clients else "has both clients and balancers"
            remedy = "set nginx_clients for a host of its own, or nginx_balancers for one behind balancers"
            yield Problem(host, "nginx_clients", what, remedy)
        if self.balancers:
            yield from certificates.authority_problems(host, "nginx_balancer_ca", self.balancer_ca)
        if self.certificate and self.private_key:
            yield from certificates.problems(
                host, "nginx", self.certificate, self.private_key, name=self.server_name, name_key="nginx_server_name"
            )
