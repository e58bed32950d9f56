"""Tests of the lab as a judge: they are run in a process of their own, and tell in JUnit's form what they found."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.lab.support import CHECKOUT

# Seconds for a whole file.
_PATIENCE = 1800


@dataclass(frozen=True)
class Case:
    """One test: whether it passed, and what it recorded."""

    name: str
    passed: bool
    recorded: dict[str, str]


def cases(path: str, *words: str) -> list[Case]:
    """Run a file of tests, in a lab of its own.

    Raises:
        AssertionError: if the lab did not come up, or the tests not to their end: then they say nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # The default family has no place for what a test records.
        form = (f"--junitxml={report}", "-o", "junit_family=xunit1")
        command = [sys.executable, "-m", "pytest", "-q", path, *words, *form]
        try:
            done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{path} did not come to its end within {_PATIENCE} s") from None
        # pytest's own codes: 0 all passed, 1 some failed; with any other one there may be no report, or half of one.
        found = [] if done.returncode > 1 else list(ElementTree.parse(report).iter("testcase"))  # noqa: S314
    # JUnit's word for a test whose fixtures failed, such as the lab.
    if not found or any(case.find("error") is not None for case in found):
        raise AssertionError(f"{path} did not come to its end: {done.stdout[-2000:]}")
    return [
        Case(
            case.get("name", ""),
            case.find("failure") is None and case.find("skipped") is None,
            {item.get("name", ""): item.get("value", "") for item in case.iter("property")},
        )
        for case in found
    ]
