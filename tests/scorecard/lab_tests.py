"""Tests of the lab as a judge: they are run in a process of their own, and tell in JUnit's form what they found."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.lab.support import CHECKOUT


@dataclass(frozen=True)
class Case:
    """One test: whether it passed, and what it recorded."""

    name: str
    passed: bool
    recorded: dict[str, str]


def cases(path: str, *words: str) -> list[Case]:
    """Run a file of tests, in a lab of its own.

    Raises:
        AssertionError: if the lab did not come up: without it the tests say nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # The default family has no place for what a test records.
        form = (f"--junitxml={report}", "-o", "junit_family=xunit1")
        command = [sys.executable, "-m", "pytest", "-q", path, *words, *form]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        found = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314
    if not found or "errors" in done.stdout.splitlines()[-1]:
        raise AssertionError(f"{path} did not come to its end: {done.stdout[-2000:]}")
    return [
        Case(
            case.get("name", ""),
            not case.findall("*[@message]"),
            {item.get("name", ""): item.get("value", "") for item in case.iter("property")},
        )
        for case in found
    ]
