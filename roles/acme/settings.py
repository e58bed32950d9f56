"""Settings of the acme role."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field
from typing_extensions import override

from quench import certificates
from quench.problems import Problem
from quench.secrets import SecretRef
from quench.settings import RoleSettings


class AcmeSettings(RoleSettings):
    """A certificate that the host gets from an ACME CA (RFC 8555) and renews by itself."""

    prefix: ClassVar[str] = "acme"

    directory: str | None = Field(
        default=None,
        pattern=r"^https://[^\s\"']+$",
        description="The CA's ACME directory. Unset: certificates are files where the run starts.",
        examples=["https://ca.example.org/acme/acme/directory"],
    )
    directory_ca: str = Field(
        default="",
        description="CA, in PEM, that has signed the directory's own certificate. Empty: one that the system knows.",
        examples=["secrets/ca/ca.crt"],
    )
    names: list[Annotated[str, Field(pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)+$")]] = Field(
        default=[],
        description="Names that the certificate is to carry. Each has to lead to this host: the CA calls it there.",
        examples=[["llm.example.org"]],
    )
    zones: list[str] = Field(
        default=["management"],
        description="Zones in which the CA is: the host calls it there, and is called on port 80 by it.",
    )
    email: str | None = Field(
        default=None,
        pattern=r"^[^\s@]+@[^\s@]+$",
        description="To whom the CA writes. Unset: to nobody.",
        examples=["pki@example.org"],
    )
    account_id: str | None = Field(
        default=None,
        pattern=r"^[^\s]+$",
        description="Key identifier of an account that the CA knows already (external account binding).",
        examples=["4711"],
    )
    account_key: SecretRef | None = Field(
        default=None,
        description="The MAC key of that account, in base64url.",
        examples=["file:secrets/acme-account.key"],
    )
    renew_days: int = Field(
        default=30, ge=1, le=365, description="Days left of the certificate below which the host asks for a new one."
    )

    @override
    def problems(self, host: str) -> Iterator[Problem]:
        if self.directory is None:
            return
        if not self.names:
            yield Problem(host, "acme_names", "is empty", "name what clients call this host")
        if self.directory_ca:
            yield from certificates.authority_problems(host, "acme_directory_ca", self.directory_ca)
        if (self.account_id is None) != (self.account_key is None):
            missing = "acme_account_id" if self.account_id is None else "acme_account_key"
            yield Problem(host, missing, "is not set, and the other half of the account is", "set both, or neither")
