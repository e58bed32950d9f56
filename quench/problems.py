"""What is wrong, said so that a person can mend it: host, key, what, remedy; one line each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyinfra.api.exceptions import PyinfraError


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that stops a run. `what` never holds the value of a secret."""

    host: str
    key: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.host}: {self.key}: {self.what}; {self.remedy}"


class Refused(PyinfraError):
    """The run cannot go on. pyinfra prints the message without a traceback and exits with 1."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(set(problems))
        super().__init__(report(self.problems))


def report(problems: Iterable[Problem]) -> str:
    """All problems as text: a count, then a line each, sorted by host and key."""
    lines = [str(problem) for problem in sorted(set(problems))]
    noun = "problem" if len(lines) == 1 else "problems"
    return "\n".join([f"{len(lines)} {noun}, nothing was changed:", *(f"  {line}" for line in lines)])
