"""Settings of the haproxy role."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, field_validator
from typing_extensions import override

from quench import certificates
from quench.keyring import Client, checked
from quench.problems import Problem
from quench.secrets import SecretRef
from quench.settings import RoleSettings


class HaproxySettings(RoleSettings):
    """HAProxy in front of the nodes: TLS, keys, limits, a queue, and a pool of nodes for each model."""

    prefix: ClassVar[str] = "haproxy"

    server_name: str = Field(
        pattern=r"^[a-z0-9.-]+$",
        description="Name that clients use. The certificate must carry it.",
        examples=["llm.example.org"],
    )
    port: int = Field(default=443, ge=1, le=65535, description="TCP port for clients.")
    client_zones: list[str] = Field(default=["app"], description="Zones in which clients are.")
    node_zones: list[str] = Field(default=["inference"], description="Zones in which the nodes are.")
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
    node_name: str = Field(
        pattern=r"^[a-z0-9.-]+$",
        description="Name of this balancer to the nodes: in node_certificate, and one of their nginx_balancers.",
        examples=["lb1.example.org"],
    )
    node_certificate: str = Field(
        repr=False,
        description="Client certificate that the nodes see, in PEM: a file where the run starts.",
        examples=["secrets/ca/lb1.example.org.crt"],
    )
    node_private_key: SecretRef = Field(
        description="Private key of the client certificate, in PEM.", examples=["file:secrets/ca/lb1.example.org.key"]
    )
    node_ca: str = Field(
        description="CA, in PEM, that has signed the nodes' certificates: a file where the run starts.",
        examples=["secrets/ca/ca.crt"],
    )
    clients: dict[str, Client] = Field(
        min_length=1,
        repr=False,
        description=(
            "The keyring: clients by the name that the access log carries. The last 60 seconds count for the rate, and "
            "`burst` plays no part."
        ),
        examples=[{"team-a": {"keys": [{"sha256": "0f3c...", "expires": "2027-06-30"}]}}],
    )
    balance: Literal["least-connections", "session"] = Field(
        default="least-connections",
        description=(
            "Which node gets a request. `session`: requests with the same X-Session-Id go to the same node, which has "
            "their beginning in its cache, unless that has much more to do than the others."
        ),
    )
    body_mebibytes: int = Field(default=8, ge=1, le=256, description="Largest request, in MiB.")
    large_requests: int = Field(
        default=64,
        ge=1,
        le=4096,
        description=(
            "Requests larger than 48 KiB, or nested deeper than 20 levels, that are answered at the same time, each "
            "held in memory. Others wait their turn."
        ),
    )
    answer_seconds: int = Field(
        default=600,
        ge=1,
        le=7200,
        description="Longest silence of an engine within one answer, and how long a reload waits for answers.",
    )
    queue_seconds: int = Field(
        default=30, ge=1, le=600, description="How long a request waits for a free node, before a 503 with Retry-After."
    )
    queue_requests: int = Field(
        default=256,
        ge=1,
        description=(
            "Requests for one model that may wait, and as many large ones whose model is yet to be read. The next gets "
            "a 503 with Retry-After."
        ),
    )
    slow_start_seconds: int = Field(
        default=30, ge=0, le=600, description="Time over which a node that is back gets its whole share."
    )
    # Two files each, and the kernel gives a process 1048576.
    connections: int = Field(
        default=20000,
        ge=100,
        le=500000,
        description="Client connections at the same time. One too many is refused at once.",
    )
    metrics_port: int = Field(default=8405, ge=1024, le=65535, description="TCP port of the Prometheus endpoint.")
    metrics_zones: list[str] = Field(default=["monitoring"], description="Zones in which Prometheus is.")

    @field_validator("clients")
    @classmethod
    def _names(cls, value: dict[str, Client]) -> dict[str, Client]:
        return checked(value)

    @field_validator("certificate", "node_certificate")
    @classmethod
    def _certificate_is_a_path(cls, value: str | None) -> str | None:
        if value and ("\n" in value or "-----" in value):
            raise ValueError("holds a certificate or a key; give the path of the certificate's file")
        return value

    @override
    def problems(self, host: str) -> Iterator[Problem]:
        if self.metrics_port == self.port:
            yield Problem(host, "haproxy_metrics_port", f"is {self.port}, as haproxy_port", "give it another")
        if self.certificate and self.private_key:
            yield from certificates.problems(
                host,
                "haproxy",
                self.certificate,
                self.private_key,
                name=self.server_name,
                name_key="haproxy_server_name",
            )
        yield from certificates.problems(
            host,
            "haproxy_node",
            self.node_certificate,
            self.node_private_key,
            name=self.node_name,
            name_key="haproxy_node_name",
        )
        yield from certificates.client_problems(host, "haproxy_node_certificate", self.node_certificate, self.node_name)
        yield from certificates.authority_problems(host, "haproxy_node_ca", self.node_ca)
