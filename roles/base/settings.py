"""Settings of the base role."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from quench.settings import RoleSettings


class BaseSettings(RoleSettings):
    """What every host has: an administrator, the right time, a locale, and fenced updates."""

    prefix: ClassVar[str] = "base"

    admin_user: str = Field(
        default="quench",
        pattern=r"^[a-z_][a-z0-9_-]{0,30}$",
        description="Administrator with sudo and no password. The login that runs Quench may be another.",
        examples=["ops"],
    )
    admin_keys: list[str] = Field(
        description="SSH public keys of the administrator, one line each. At least one.",
        examples=[["ssh-ed25519 AAAAC3... ops@example.org"]],
        min_length=1,
    )
    rollback_seconds: int = Field(
        default=60,
        ge=10,
        le=600,
        description="Seconds after which the host goes back to its former files, if the controller does not get in.",
    )
    apt_mirror: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s@]+[^/\s@]$",
        repr=False,
        description="Package mirror that replaces the distribution's own, for a network without a way out.",
        examples=["https://mirror.example.org/debian"],
    )
    apt_security_mirror: str | None = Field(
        default=None,
        validate_default=True,
        pattern=r"^https?://[^\s@]+[^/\s@]$",
        repr=False,
        description="Mirror of the security archive. Goes with apt_mirror.",
        examples=["https://mirror.example.org/debian-security"],
    )
    ntp_servers: list[str] = Field(
        default=[],
        description="Time servers that replace the distribution's pool. Logs are evidence only if the clock is right.",
        examples=[["ntp1.example.org", "ntp2.example.org"]],
    )
    service_zones: list[str] = Field(
        default=["management"], description="Zones in which name servers, time servers and the package mirror are."
    )
    locale: Literal["C.UTF-8", "C"] = Field(
        default="C.UTF-8", description="System locale. These two are there without a package of their own."
    )
    updates: Literal["security", "off"] = Field(
        default="security",
        description=(
            "Automatic updates. `security` installs security updates daily, never reboots, and never touches "
            "the kernel, the NVIDIA stack or a serving engine. `off` leaves patching to you."
        ),
    )

    @field_validator("admin_user")
    @classmethod
    def _admin_is_a_person(cls, value: str) -> str:
        if value == "root":
            raise ValueError("is root, which nobody logs in as; name another user, who gets sudo")
        return value

    @field_validator("admin_keys")
    @classmethod
    def _keys_are_public(cls, value: list[str]) -> list[str]:
        for key in value:
            if "PRIVATE KEY" in key or "\n" in key or not key.startswith(("ssh-", "ecdsa-", "sk-")):
                raise ValueError("holds a line that is no public key; put the .pub file's line there")
        return value

    @field_validator("apt_security_mirror")
    @classmethod
    def _mirrors_come_in_pairs(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (info.data.get("apt_mirror") is None) != (value is None):
            raise ValueError(
                "only one of base_apt_mirror and base_apt_security_mirror is set; "
                "set both, else the other is fetched from the internet"
            )
        return value
