"""Settings of the nginx role."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from pydantic import Field, field_validator
from typing_extensions import override

from quench.problems import Problem
from quench.secrets import SecretRef, SecretUnavailable
from quench.settings import Model, RoleSettings, check_names


class Key(Model):
    """An API key of a client, known only by its hash. `quench key` makes one."""

    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key, in hex. The key itself stands nowhere."
    )
    expires: str = Field(
        pattern=r"^\d{4}-\d{2}-\d{2}$",
        description="First day, in UTC, on which the key is refused, as YEAR-MONTH-DAY.",
        examples=["2027-06-30"],
    )

    @field_validator("expires")
    @classmethod
    def _is_a_day(cls, value: str) -> str:
        try:
            date.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{value} is no day; write it as YEAR-MONTH-DAY") from None
        return value


class Client(Model):
    """Somebody who may use the models."""

    keys: list[Key] = Field(
        min_length=1, max_length=2, description="One live key, or two while the client changes over."
    )
    models: list[str] | None = Field(
        default=None, description="Models that the client may use. Unset: all of this host."
    )
    requests_per_minute: int = Field(default=60, ge=1, le=60000, description="Request rate.")
    burst: int = Field(default=20, ge=0, description="Requests that may come at once beyond the rate.")
    concurrent: int = Field(default=8, ge=1, le=10000, description="Requests that may run at the same time.")


class NginxSettings(RoleSettings):
    """nginx in front of the engines: TLS, keys, limits, an allow-list of exact paths."""

    prefix: ClassVar[str] = "nginx"

    server_name: str = Field(
        pattern=r"^[a-z0-9.-]+$",
        description="Name that clients use. The certificate must carry it.",
        examples=["llm.example.org"],
    )
    port: int = Field(default=443, ge=1, le=65535, description="TCP port for clients.")
    certificate: str = Field(
        repr=False,
        description="Path, where the run starts, of the certificate and its chain, in PEM.",
        examples=["secrets/llm.example.org.crt"],
    )
    private_key: SecretRef = Field(
        description="Private key of the certificate, in PEM.", examples=["file:secrets/llm.example.org.key"]
    )
    clients: dict[str, Client] = Field(
        min_length=1,
        repr=False,
        description="The keyring: clients by the name that the access log carries.",
        examples=[{"team-a": {"keys": [{"sha256": "0f3c...", "expires": "2027-06-30"}]}}],
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
        owners: dict[str, str] = {}
        check_names(value, "a client")
        for name, client in value.items():
            for key in client.keys:
                if key.sha256 in owners:
                    raise ValueError(
                        f"clients {owners[key.sha256]} and {name} have the same key; make a new one: quench key"
                    )
                owners[key.sha256] = name
        return value

    @field_validator("certificate")
    @classmethod
    def _certificate_is_a_path(cls, value: str) -> str:
        if "\n" in value or "-----" in value:
            raise ValueError("holds a certificate or a key; give the path of the certificate's file")
        return value

    def certificate_text(self) -> str:
        """The certificate and its chain, in PEM."""
        return Path(self.certificate).expanduser().read_text()

    @override
    def problems(self, host: str) -> Iterator[Problem]:
        key = "nginx_certificate"
        try:
            certificate = x509.load_pem_x509_certificates(self.certificate_text().encode())[0]
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "there is no such user"
            yield Problem(host, key, f"{self.certificate}: {reason}", "put the certificate there")
            return
        except ValueError:
            yield Problem(host, key, f"{self.certificate} is no PEM certificate", "convert it: openssl x509")
            return
        if "PRIVATE KEY" in self.certificate_text():
            yield Problem(
                host,
                key,
                f"{self.certificate} holds a private key beside the certificate, which everyone on the host may read",
                "give the certificate and its chain alone",
            )
        now = datetime.now(UTC)
        if certificate.not_valid_after_utc <= now:
            when = certificate.not_valid_after_utc.date()
            yield Problem(host, key, f"{self.certificate} expired on {when}", "renew it")
        if certificate.not_valid_before_utc > now:
            when = certificate.not_valid_before_utc.date()
            yield Problem(host, key, f"{self.certificate} is not valid before {when}", "check the clock and the file")
        if not _covers(certificate, self.server_name):
            yield Problem(
                host,
                key,
                f"{self.certificate} does not carry the name {self.server_name}",
                "have it issued for nginx_server_name",
            )
        try:
            private = load_pem_private_key(self.private_key.resolve().encode(), password=None)
        except SecretUnavailable:
            return  # said for every secret alike, by the role decorator
        except (ValueError, TypeError):
            yield Problem(
                host,
                "nginx_private_key",
                "is no PEM private key without a password",
                "convert it: openssl pkey",
            )
            return
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if private.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
            yield Problem(host, "nginx_private_key", "does not belong to the certificate", "give the pair")


def _covers(certificate: x509.Certificate, name: str) -> bool:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    names = [*extension.get_values_for_type(x509.DNSName)]
    names += [str(address) for address in extension.get_values_for_type(x509.IPAddress)]
    return name in names or f"*.{name.partition('.')[2]}" in names
