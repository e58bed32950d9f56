"""What a judge says, in the form that the table, the page and the JSON line are written from."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

from tests.lab.support import Node

_WAIVERS = Path(__file__).with_name("waivers.yaml")


@dataclass(frozen=True)
class Score:
    """The number of one judge, and what it stands on.

    Attributes:
        before: of the bare host; None where there is nothing to judge yet.
        limit: what `after` must reach, or with `at_most` must not exceed.
        findings: what remains, a line each.
        waived: what is not counted, with the reason.
        notes: how it was measured, and what was not.
    """

    judge: str
    before: float | None
    after: float
    limit: float
    at_most: bool = False
    findings: list[str] = field(default_factory=list)
    waived: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def met(self) -> bool:
        return self.after <= self.limit if self.at_most else self.after >= self.limit


@cache
def waivers(judge: str) -> dict[str, str]:
    """What waivers.yaml says for a judge: the name of a rule, and why it does not count."""
    found: dict[str, dict[str, str]] = yaml.safe_load(_WAIVERS.read_text())
    return {rule: " ".join(reason.split()) for rule, reason in found.get(judge, {}).items()}


def install(host: Node, *packages: str) -> None:
    """Install Debian packages from the lab's mirror, whatever the host's own sources say."""
    # The host's sources are left as they are: they are part of what is judged.
    sources = "-o Dir::Etc::SourceList=/run/scorecard.list -o Dir::Etc::SourceParts=/dev/null"
    host.root(
        f"echo 'deb {host.lab.mirror}/debian trixie main' >/run/scorecard.list; export DEBIAN_FRONTEND=noninteractive; "
        f"apt-get -q {sources} update && "
        f"apt-get -q -y {sources} --no-install-recommends install {' '.join(packages)}"
    )


def version(host: Node, package: str) -> str:
    """The installed version of a Debian package."""
    return host.root(f"dpkg-query -W -f '${{Version}}' {package}")
