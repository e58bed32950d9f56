"""How often the lab's own tests locked themselves out, and how often the host was reached again as before."""

from __future__ import annotations

from dataclasses import dataclass

from tests.scorecard.lab_tests import cases
from tests.scorecard.score import Score


@dataclass(frozen=True)
class Lockouts:
    """How many ways were tried, how many of these the host undid, and those after which it was not as before."""

    tried: int
    undone: int
    lost: list[str]


def attempt() -> Lockouts:
    """Run tests/lab/test_lockout.py.

    Raises:
        AssertionError: if not even ten ways were tried, or the lab did not come up.
    """
    found = cases("tests/lab/test_lockout.py", "-k", "test_the_host_is_reached_as_before")
    if len(found) < 10:
        raise AssertionError(f"only {len(found)} ways were tried: {', '.join(case.name for case in found)}")
    undone = sum(case.recorded.get("undone") == "1" for case in found)
    return Lockouts(len(found), undone, [case.name for case in found if not case.passed])


def score(lockouts: Lockouts) -> Score:
    return Score(
        judge="lockouts: hosts not reached again",
        before=None,
        after=len(lockouts.lost),
        limit=0,
        at_most=True,
        findings=lockouts.lost,
        notes=[
            f"{lockouts.tried} ways to lock oneself out, each on a host of the lab: {lockouts.tried - lockouts.undone} "
            f"refused beforehand, {lockouts.undone} undone by the host itself: tests/lab/test_lockout.py."
        ],
    )
