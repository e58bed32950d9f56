"""What all tests share."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
# Roles and deploys are found by the folder that pyinfra runs in, and so by the tests.
sys.path.insert(0, str(CHECKOUT))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="write the golden trees anew")
    parser.addoption("--all-boards", action="store_true", help="simulate each GPU board on each platform")


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyinfra reads config.py, templates and relative paths from the folder it is run in."""
    monkeypatch.chdir(CHECKOUT)


@pytest.fixture(scope="session")
def example_secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificates that the example inventories name, issued for this run, and their repositories' key."""
    from quench import ca

    folder = tmp_path_factory.mktemp("secrets")
    ca.create(folder, "Test CA")
    for name in ("llm.example.org", "10.0.30.14", *(f"node{number}.example.org" for number in range(1, 9))):
        ca.issue(folder, [name])
    for name in ("lb1.example.org", "lb2.example.org"):
        ca.issue(folder, [name], client=True)
    shutil.copy(CHECKOUT / "tests" / "golden" / "keys" / "repository.asc", folder)
    return folder
