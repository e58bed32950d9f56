"""What the checks of a host share.

    pytest tests/host --hosts=ssh://node1.example.org,ssh://node2.example.org --ssh-config=FILE --sudo

The checks read from the host itself what it is meant to be, so they hold for the lab, for molecule and for any
live fleet. They change nothing on it; nginx gets a handful of requests, none of which reaches an engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest
from testinfra.host import Host

HERE = Path(__file__).parent
ROLES = HERE.parent.parent / "roles"
# A pattern of the driver's names fits them, and they are no part of it: nouveau's firmware, and what has its own pins.
NO_DRIVER = ("nvidia-gpu-firmware", "firmware-nvidia-graphics", "nvidia-container-*", "libnvidia-container*")
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


@dataclass(frozen=True)
class Packages:
    """The packages of the host that are pinned to a version, whichever package manager it has."""

    host: Host
    manager: str
    # Version by pattern of names, from the pins of all roles. None: pinned to a source, in whatever version.
    pins: dict[str, str | None]

    def pinned(self, name: str) -> str | None:
        """The version that a package is pinned to, without epoch and revision."""
        fitting = [pattern for pattern in self.pins if fnmatch(name, pattern)]
        if any(fnmatch(name, pattern) for pattern in NO_DRIVER):
            fitting = [pattern for pattern in fitting if "container" in pattern]
        # A part with a version of its own is named more closely than the family that it is of.
        return self.pins[max(fitting, key=lambda pattern: len(pattern.strip("*")))] if fitting else None

    def installed(self) -> dict[str, str]:
        """Version of each installed package that a pin names."""
        if self.manager == "dnf":
            rows = self.host.check_output(r"rpm -qa --qf '%{NAME} %{VERSION}\n'").splitlines()
        else:
            listed = self.host.check_output(r"dpkg-query -W -f '${db:Status-Abbrev}|${Package} ${Version}\n'")
            rows = [row.split("|", 1)[1] for row in listed.splitlines() if row[1:3] == "i "]
        found = {name: upstream(version) for name, version in (row.split(" ", 1) for row in rows)}
        return {name: version for name, version in found.items() if self.pinned(name) is not None}

    def choice(self, name: str) -> str:
        """The version that the package manager would choose if it were told to install or upgrade a package."""
        if self.manager == "dnf":
            wanted = "dnf -q repoquery --latest-limit=1 --qf '%%{version}\n' %s"
            return str(self.host.check_output(wanted, name).strip())
        policy = self.host.check_output("apt-cache policy %s", name)
        return upstream(re.findall(r"^  Candidate: (\S+)", policy, re.MULTILINE)[0])

    def would_move(self) -> list[str]:
        """Pinned packages that an upgrade of the whole host would change or remove."""
        if self.manager == "dnf":
            names = self.host.check_output(r"dnf -q repoquery --upgrades --qf '%{name}\n'").split()
        else:
            plan = self.host.check_output("apt-get --simulate --quiet dist-upgrade")
            names = re.findall(r"^(?:Inst|Remv) (\S+)", plan, re.MULTILINE)
        return [name for name in names if self.pinned(name) is not None]


def pins_of(preferences: str) -> dict[str, str | None]:
    """What apt's preferences pin, version by pattern of names."""
    pins: dict[str, str | None] = {}
    # apt_preferences(5): the first record that fits counts.
    for names, pin in re.findall(r"^Package: (.+)\nPin: (.+)$", preferences, re.MULTILINE):
        version = re.fullmatch(r"version /\(\^\|:\)(.+)-/", pin)
        for name in names.split():
            pins.setdefault(name, version[1].replace("\\.", ".") if version else None)
    return pins


def upstream(version: str) -> str:
    """Upstream's part of a package version: without epoch, and without revision."""
    return version.rpartition(":")[2].partition("-")[0]


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
    if not manifests:
        pytest.fail(f"no run has reached this host: {MANIFESTS} has nothing in it")
    if (ROLES / role).is_dir() and role not in manifests:
        pytest.skip(f"no run has brought the role {role} to this host")


@pytest.fixture(scope="module")
def unit(host: Host) -> Callable[[str], Unit]:
    """A systemd unit by its name."""
    return lambda name: Unit(host, name)


@pytest.fixture(scope="module")
def packages(host: Host) -> Packages:
    """The packages that are pinned, and what the package manager makes of the pins."""
    if host.file("/etc/yum.repos.d/quench-nvidia.repo").exists:
        # dnf.conf(5): NAME-VERSION-RELEASE
        text = host.check_output("sed -n 's/^includepkgs=//p' /etc/yum.repos.d/quench-*.repo")
        return Packages(host, "dnf", {name: version for name, version, _ in (w.rsplit("-", 2) for w in text.split())})
    return Packages(host, "apt", pins_of(host.check_output("cat /etc/apt/preferences.d/quench-*")))
