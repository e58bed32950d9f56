"""Managed files: what a role wants on a host, rendered without knowing the host."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from quench.secrets import SecretRef

CHECKOUT = Path(__file__).resolve().parent.parent
TEMPLATES = CHECKOUT / "templates"


@dataclass(frozen=True)
class ManagedFile:
    """A file as it shall be on the host.

    Args:
        dest: absolute path on the host.
        content: text; a secret stands in it as its reference.
        mode: permission bits.
        check: a command that runs as root on the host and sees the new files at their places,
            before any of them is put there; its failure leaves the host as it was.
        reloads: unit that reads the file again on reload.
        restarts: unit that reads the file only at its start.
        secrets: references in `content` that are replaced by their values on the way to the host.
    """

    dest: str
    content: str
    owner: str = "root"
    group: str = "root"
    mode: int = 0o644
    check: str | None = None
    reloads: str | None = None
    restarts: str | None = None
    secrets: tuple[SecretRef, ...] = ()

    def __post_init__(self) -> None:
        if self.secrets and self.mode & 0o007:
            raise ValueError(f"{self.dest} holds a secret and would be open to everyone: mode {self.mode:o}")

    def revealed(self) -> bytes:
        """The bytes for the host, secrets included. Never for a log, a name or a rendered tree."""
        text = self.content
        for secret in self.secrets:
            text = text.replace(str(secret), secret.resolve())
        return text.encode()

    def sha256(self) -> str:
        """Hex digest of the bytes for the host."""
        return hashlib.sha256(self.revealed()).hexdigest()


@dataclass(frozen=True)
class ManagedDirectory:
    """A directory as it shall be on the host. It is not removed when a role no longer wants it."""

    dest: str
    owner: str = "root"
    group: str = "root"
    mode: int = 0o755


Managed = ManagedFile | ManagedDirectory


def template(role: str, dest: str, values: Mapping[str, object], *, comment: str = "#") -> str:
    """The text of `templates/<role>/<dest>.j2`, opened by the header that every managed file has.

    Raises:
        jinja2.UndefinedError: if the template names a value that is not given.
    """
    source = f"{role}/{dest.lstrip('/')}.j2"
    body = _environment().get_template(source).render(values)
    return f"{_header(role, f'templates/{source}', comment)}\n{body}"


def to_yaml(role: str, data: Mapping[str, Any], *, relaxed: Sequence[str] = ()) -> str:
    """Data as YAML, with the header, and with a comment for each thing that the inventory relaxes."""
    body = yaml.safe_dump(dict(data), sort_keys=False, default_flow_style=False, width=120)
    comments = "".join(f"# Relaxed by {what}.\n" for what in relaxed)
    return f"{_header(role, f'roles/{role}/files.py', '#')}\n{comments}{body}"


def to_json(role: str, data: Mapping[str, Any]) -> str:
    """Data as JSON. JSON has no comments, so the header is the value of the first key, `//`."""
    header = " ".join(_header(role, f"roles/{role}/files.py", "").split())
    return json.dumps({"//": header, **data}, indent=2) + "\n"


def _header(role: str, source: str, comment: str) -> str:
    # No time, no version, nothing of the run: the same settings give the same bytes.
    end = " -->" if comment == "<!--" else ""
    lines = (
        f"Managed by Quench, role {role}, from {source}.",
        f"Change the inventory's {role}_* keys instead: what is edited here, the next run undoes.",
    )
    return "\n".join(f"{comment} {line}{end}".strip() for line in lines)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - configuration files, not pages
    )
