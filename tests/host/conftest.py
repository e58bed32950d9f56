"""What the checks of a host share.

    pytest tests/host --hosts=ssh://node1.example.org,ssh://node2.example.org --ssh-config=FILE --sudo

The checks read from the host itself what it is meant to be, so they hold for the lab, for molecule and for any
live fleet. They change nothing on it; nginx gets a handful of requests, none of which reaches an engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from testinfra.host import Host

HERE = Path(__file__).parent
MANIFESTS = "/var/lib/quench/manifest"


@dataclass(frozen=True)
class Entry:
    """A file as the last run left it."""

    sha256: str
    mode: int
    owner: str
    group: str


@dataclass(frozen=True)
class Unit:
    """A systemd unit of the host."""

    host: Host
    name: str

    def property(self, name: str) -> str:
        return str(self.host.check_output("systemctl show --property=%s --value %s", name, self.name))

    def pids(self) -> set[int]:
        """All processes of the unit."""
        group = f"/sys/fs/cgroup{self.property('ControlGroup')}"
        found = self.host.check_output("find %s -name cgroup.procs -exec cat {} +", group)
        return {int(pid) for pid in found.split()}

    def kernel_says(self) -> dict[str, str]:
        """/proc/PID/status of the main process: what holds, whatever the unit file says."""
        status = self.host.file(f"/proc/{self.property('MainPID')}/status").content_string
        return {key: " ".join(value.split()) for key, value in re.findall(r"^(\w+):(.*)$", status, re.MULTILINE)}

    def listens_on(self) -> set[str]:
        """ADDRESS:PORT of each TCP socket on which a process of the unit listens."""
        pids = self.pids()
        lines = self.host.check_output("ss -Hltnp").splitlines()
        return {line.split()[3] for line in lines if pids & {int(pid) for pid in re.findall(r"pid=(\d+)", line)}}

    def exposure(self) -> float:
        """What systemd itself thinks of the unit's sandbox, from 0, none at all, to 10, all open."""
        report = self.host.check_output("systemd-analyze security --no-pager %s", self.name)
        return float(report.splitlines()[-1].split(": ", 1)[1].split()[0])

    def journal(self) -> str:
        """Its last lines, for the message of a failed check."""
        lines = self.host.run("journalctl --unit %s --lines 30 --no-pager --output cat", self.name).stdout
        return f"{self.name}, from its journal:\n{lines}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # testinfra without --hosts takes the machine that it runs on for the host, and does not say so.
    if config.getoption("hosts", None):
        return
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason="no host named: --hosts=ssh://NAME --ssh-config=FILE --sudo"))


@pytest.fixture(scope="module")
def manifests(host: Host) -> dict[str, dict[str, Entry]]:
    """The files of each role by their path, as the last run left them."""
    if host.run("id -u").stdout.strip() != "0":
        pytest.fail("the checks need root on the host: add --sudo, for a user who may use it without a password")
    found: dict[str, dict[str, Entry]] = {}
    for line in host.run(f"cd {MANIFESTS} && grep -H '' -- *").stdout.splitlines():
        role, _, rest = line.partition(":")
        sha256, mode, owner, group, path = rest.split(" ", 4)
        found.setdefault(role, {})[path] = Entry(sha256, int(mode, 8), owner, group)
    return found


@pytest.fixture(scope="module", autouse=True)
def _the_role_is_there(request: pytest.FixtureRequest, manifests: dict[str, dict[str, Entry]]) -> None:
    role = request.path.stem.removeprefix("test_")
    if "base" not in manifests:
        pytest.fail(f"no run has reached this host: it has no {MANIFESTS}/base")
    if role not in manifests:
        pytest.skip(f"no run has brought the role {role} to this host")


@pytest.fixture(scope="module")
def unit(host: Host) -> Callable[[str], Unit]:
    """A systemd unit by its name."""
    return lambda name: Unit(host, name)
