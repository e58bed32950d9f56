"""What is relaxed on a host, by the comments in its files: each relaxation writes one, with its reason."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tests.lab.support import Node
from tests.scorecard.score import Score

_COMMENT = re.compile(r"^\s*(?:#|//|<!--) Relaxed by (.*?)(?: -->)?$")


def found(lines: Iterable[str]) -> list[str]:
    """What lines of files say of relaxations, each once."""
    return sorted({match[1] for line in lines if (match := _COMMENT.match(line))})


def of(host: Node) -> list[str]:
    """What the files say that Quench has brought to the host."""
    text = host.root(
        "cat /var/lib/quench/manifest/* | cut -d' ' -f5- | tr '\\n' '\\0' | xargs -0 grep -h 'Relaxed by '; true"
    )
    return found(text.splitlines())


def score(relaxed: list[str]) -> Score:
    """No limit: each was asked for, by name. The auditor decides."""
    return Score(
        judge="relaxations",
        before=None,
        after=len(relaxed),
        limit=float("inf"),
        at_most=True,
        findings=relaxed,
        notes=["Each stands in the inventory by name, and in the file that it relaxes."],
    )
