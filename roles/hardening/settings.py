"""Settings of the hardening role."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from quench.settings import RoleSettings

Relaxation = Literal["password-login", "root-login", "tcp-forwarding", "tmp-exec"]


class HardeningSettings(RoleSettings):
    """SSH, passwords, kernel, audit, integrity: as strict as an inference node allows; but for the firewall."""

    prefix: ClassVar[str] = "hardening"

    ssh_users: list[str] = Field(
        default=[],
        description="Users who may log in by SSH. Empty: everyone who has a key on the host.",
        examples=[["ops", "deploy"]],
    )
    ssh_port: int = Field(default=22, ge=1, le=65535, description="TCP port of sshd. firewall_ssh_port goes with it.")
    rollback_seconds: int = Field(
        default=60,
        ge=10,
        le=600,
        description="Seconds after which the host goes back to its former files, if the controller does not get in.",
    )
    banner: str = Field(
        default=(
            "Authorized access only. This system is private and monitored: activity is logged and may be used as "
            "evidence. Disconnect now unless you consent."
        ),
        description="Text before each login. It names neither the operator nor the system.",
    )
    password_days: int = Field(default=365, ge=1, le=365, description="Days after which a password has to be changed.")
    journal_days: int = Field(default=365, ge=1, description="Days after which the journal's entries are deleted.")
    journal_mebibytes: int = Field(default=4096, ge=64, description="Room for the journal, in MiB.")
    audit_paths: dict[str, str] = Field(
        default={},
        description="Further files and folders whose changes are recorded by auditd, each with the key of its records.",
        examples=[{"/etc/company": "company"}],
    )
    integrity_paths: list[str] = Field(
        default=["/boot", "/etc", "/opt", "/usr"],
        description="Folders that AIDE compares each day with their baseline. Model stores are not among them.",
    )
    integrity_excluded: list[str] = Field(
        default=["/etc/adjtime$", "/etc/mtab$", "/etc/resolv\\.conf$"],
        description="What AIDE leaves out of these, as regular expressions from the start of the path: aide.conf(5).",
    )
    certificate_days: int = Field(
        default=21,
        ge=1,
        description="Days left of a certificate that Quench has brought, below which certificate-expiry.service fails.",
    )
    relaxations: dict[Relaxation, str] = Field(
        default={},
        description=(
            "What is relaxed, with the reason, which is rendered for the auditor. `password-login`: SSH by password; "
            "`root-login`: root by key; `tcp-forwarding`: the host is a way to others; `tmp-exec`: programs run from "
            "/tmp."
        ),
        examples=[{"tcp-forwarding": "jump host of the management zone, change 4711"}],
    )

    def tmp_options(self) -> str:
        """What /tmp is mounted with."""
        return "nosuid,nodev" if "tmp-exec" in self.relaxations else "nosuid,nodev,noexec"

    @field_validator("relaxations")
    @classmethod
    def _relaxations_have_reasons(cls, value: dict[str, str]) -> dict[str, str]:
        for name, reason in value.items():
            if len(reason.split()) < 2 or "\n" in reason:
                raise ValueError(f"{name} has no reason; say why, in a few words, for the auditor")
        return value

    @field_validator("banner")
    @classmethod
    def _banner_is_plain(cls, value: str) -> str:
        # agetty(8): a backslash would print the system's name and version.
        if "\\" in value or not value.isascii():
            raise ValueError("holds a backslash or more than ASCII; agetty would take it for something else")
        return value

    @field_validator("integrity_paths", "integrity_excluded")
    @classmethod
    def _integrity_is_of_paths(cls, value: list[str]) -> list[str]:
        for path in value:
            if not path.startswith("/") or any(letter.isspace() for letter in path):
                raise ValueError(f"{path!r} is no path; give an absolute one, without spaces")
        return value

    @field_validator("audit_paths")
    @classmethod
    def _audit_paths_are_paths(cls, value: dict[str, str]) -> dict[str, str]:
        for path, key in value.items():
            if not path.startswith("/") or any(letter.isspace() for letter in path + key) or not key:
                raise ValueError(f"{path!r} with key {key!r} is no rule; give an absolute path and a word, no spaces")
        return value
