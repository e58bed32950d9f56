"""How often the lab's own tests locked themselves out, and how often the host was reached again as before."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.lab.support import CHECKOUT
from tests.scorecard.score import Score

_TEST = "test_the_host_is_reached_as_before"


@dataclass(frozen=True)
class Lockouts:
    """How many ways were tried, and those after which the host was not as before."""

    tried: int
    lost: list[str]


def attempt() -> Lockouts:
    """Run tests/lab/test_lockout.py, in a lab of its own.

    Raises:
        AssertionError: if not even ten ways were tried, or the lab did not come up.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "tests/lab/test_lockout.py",
            "-k",
            _TEST,
            f"--junitxml={report}",
        ]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314
    if len(cases) < 10 or "errors" in done.stdout.splitlines()[-1]:
        # Without its lab the test says nothing of lockouts.
        raise AssertionError(f"the test of lockouts did not come to its end: {done.stdout[-2000:]}")
    return Lockouts(len(cases), [case.get("name", "") for case in cases if len(case.findall("*[@message]"))])


def score(lockouts: Lockouts) -> Score:
    return Score(
        judge="lockouts: hosts not reached again",
        before=None,
        after=len(lockouts.lost),
        limit=0,
        at_most=True,
        findings=lockouts.lost,
        notes=[f"{lockouts.tried} ways to lock oneself out, each on a host of the lab: tests/lab/test_lockout.py."],
    )
