"""What passes between the zones: each pair, each port, IPv4 and IPv6, by packets between hosts and not by their rules.

Real: the hosts' firewalld and nftables, podman with its own network and rules (by iptables on Debian 12, by nftables
on Debian 13), and every packet. The controller is the management zone. Beside each host stands a stranger, a network
namespace of this machine with an address of the host's zone and no firewall: between two hosts the rules of one hide
those of the other, while a stranger's call is stopped by the host that he calls or by nobody. One more is in no zone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import packets
import pytest
from support import DEPLOY, STOCK, Node, hosts_of, run_pyinfra, write, write_inventory

from quench.lab import fleet
from quench.lab.state import HostSpec, Lab

PUBLISHED = "18000/tcp"
# sshd, names, the web, a database, an engine, a mirror, two exporters, a container's published port, time.
PORTS = (
    "22/tcp", "53/tcp", "80/tcp", "443/tcp", "5432/tcp", "8000/tcp", "8080/tcp", "9100/tcp", "9400/tcp", PUBLISHED,
    "53/udp", "123/udp",
)  # fmt: skip

# Who may call whom, from zone to zone. Written by hand: it follows from no rule and no setting of Quench.
SERVICES = {"53/tcp", "53/udp", "123/udp", "8080/tcp"}
PASSES = {
    ("management", "dmz"): {"22/tcp"},
    ("management", "app"): {"22/tcp"},
    ("management", "storage"): {"22/tcp"},
    ("management", "monitoring"): {"22/tcp"},
    ("management", "inference"): {"22/tcp", "443/tcp"},
    ("dmz", "inference"): {"443/tcp"},
    ("app", "inference"): {"443/tcp"},
    ("monitoring", "inference"): {"9400/tcp"},
    ("dmz", "management"): SERVICES,
    ("app", "management"): SERVICES,
    ("storage", "management"): SERVICES,
    ("monitoring", "management"): SERVICES,
    ("inference", "management"): SERVICES,
}
# How services answer that are not this test's own: sshd, nginx to a request without TLS, the mirror, podman's names.
ANSWERS = {"22/tcp": "SSH-2.0-", "443/tcp": "HTTP/1.1 400 ", "8080/tcp": "HTTP/1.1 ", "53/udp": "QU"}

HOSTS = (
    HostSpec("dmz", "debian-13", zone="dmz", packages=STOCK),
    HostSpec("app", "debian-12", zone="app", packages=STOCK),
    HostSpec("storage", "debian-13", zone="storage", packages=STOCK),
    HostSpec("monitoring", "debian-12", zone="monitoring", packages=STOCK),
    HostSpec("inference", "debian-13", packages=STOCK),
    HostSpec("inference-12", "debian-12", packages=STOCK),
)
# The whole of deploys/inference.py is on one of them, to save time. Containers are on both.
ENGINES = ("inference", "inference-12")
CLOSED = tuple(spec.name for spec in HOSTS if spec.name != "inference")
# Where a service or a container answers by itself, there is no listener.
TAKEN = {"22/tcp": ("inference", *CLOSED), "443/tcp": ("inference",), PUBLISHED: ENGINES}
# Last parts of the strangers' addresses. The world is what is in no zone; on the lab's network that is IPv6 alone.
STRANGERS = {"dmz": 0x3, "app": 0x5, "storage": 0x7, "monitoring": 0x9, "inference": 0xFE, "world": 0x1000}

# Networks of the containers.
CONTAINERS = ("10.89.0.0/24", "fd71:7565:6e63:ffff::/64")

# Hosts with the flows that their part in the table needs, and nothing else to serve.
_CLOSED = """\
from pyinfra import host

from quench import Flow, allow, preflight
from roles.base import base
from roles.firewall import firewall

preflight()
base()
allow(*(Flow("test", *flow, "what this test calls") for flow in {flows}.get(host.data.firewall_zone, ())))
firewall()
"""
_FLOWS = {
    "dmz": [("out", ("inference",), 443)],
    "app": [("out", ("inference",), 443)],
    "monitoring": [("out", ("inference",), 9400)],
    "inference": [("in", ("management", "dmz", "app"), 443), ("in", ("monitoring",), 9400)],
}
# Before deploys/inference.py as it is: hosts without GPUs have no exporter that would declare this.
_EXPORTER = """\
from quench import Flow, allow

allow(Flow("test", "in", ("monitoring",), 9400, "what this test calls"))
"""

_SCRIPT = "/usr/local/lib/quench-packets.py"
_LISTENERS = """\
[Service]
Type=notify
ExecStart=/usr/bin/python3 {script} serve {name} {addresses} {ports}

[Install]
WantedBy=multi-user.target
"""
# In a root file system with the host's own files: the lab has no registry, and its hosts no control groups to give.
_CONTAINER = """\
[Unit]
After=firewalld.service quench-forward.service

[Service]
Type=notify
NotifyAccess=all
ExecStart=/usr/bin/podman run --rm --replace --name published --cgroups=disabled --ulimit=host --pids-limit=-1 \\
    --network=published --publish {port}:{port} --volume /usr:/usr:ro --rootfs /var/tmp/rootfs \\
    python3 {script} serve container 0.0.0.0,:: {port}/tcp

[Install]
WantedBy=multi-user.target
"""
_PREPARE_PODMAN = """
export DEBIAN_FRONTEND=noninteractive
apt-get -q update >/dev/null
apt-get -q -y --no-install-recommends install podman netavark iptables >/dev/null
mkdir -p /etc/containers
printf '%s\\n' '[storage]' 'driver="vfs"' 'runroot="/run/containers/storage"' \
    'graphroot="/var/lib/containers/storage"' >/etc/containers/storage.conf
root=/var/tmp/rootfs
mkdir -p $root/usr $root/dev $root/proc $root/sys $root/etc $root/run $root/tmp
ln -sfn usr/bin $root/bin; ln -sfn usr/lib $root/lib; ln -sfn usr/lib64 $root/lib64
podman network create --ipv6 --subnet {} --subnet {} published
systemctl enable --quiet --now published.service
"""


T = TypeVar("T")
R = TypeVar("R")


class Heard(NamedTuple):
    """One call, and what came back."""

    source: Party
    target: Party
    address: str
    port: str
    answer: str

    @property
    def passed(self) -> bool:
        return not self.answer.startswith(packets.SILENCE)

    @property
    def through_a_firewall(self) -> bool:
        return self.source is not self.target and (self.source.firewall or self.target.firewall)

    @property
    def allowed(self) -> bool:
        return self.port in PASSES.get((self.source.zone, self.target.zone), ())

    @property
    def right(self) -> bool:
        """Whether it is as the table says. A flow that passes is proved by the answer of the one who was called."""
        if self.allowed:
            return self.answer == self.target.name or self.answer.startswith(ANSWERS.get(self.port, "\0"))
        return not self.passed

    def __str__(self) -> str:
        return f"{self.source.name} -> {self.target.name} {self.address} {self.port}: {self.answer}"


@dataclass(frozen=True)
class Party:
    """One who calls and answers."""

    name: str
    zone: str
    addresses: tuple[str, ...]
    firewall: bool
    # Runs packets.py call, with what that reads.
    run: Callable[[str], str] = field(repr=False)

    def call(self, targets: Sequence[Party], ports: Sequence[str] = PORTS) -> list[Heard]:
        versions = {":" in address for address in self.addresses}
        found = [(target, address) for target in targets for address in target.addresses]
        calls = [(*called, port) for called in found for port in ports if (":" in called[1]) in versions]
        answers = json.loads(self.run(json.dumps([[address, port] for _, address, port in calls])))
        return [Heard(self, *called, answer) for called, answer in zip(calls, answers, strict=True)]


@dataclass
class House:
    """All who call and answer."""

    nodes: dict[str, Node]
    parties: list[Party]

    @property
    def engines(self) -> list[Party]:
        return [party for party in self.parties if party.name in ENGINES]

    @property
    def open(self) -> list[Party]:
        """Those without a firewall: what is stopped between them and a host is stopped by the host."""
        return [party for party in self.parties if not party.firewall]

    def matrix(self) -> Matrix:
        """Everybody calls everybody, and himself."""
        rows = at_once(lambda source: source.call(self.parties), self.parties)
        return Matrix([heard for row in rows for heard in row])

    def containers(self) -> tuple[list[Heard], list[Heard]]:
        """What they hear who call the published ports, and what the containers hear. All others have no firewall."""
        callers = [(party, self.engines, [PUBLISHED]) for party in self.open]
        callers += [(container(self.nodes[name]), self.open, list(PORTS)) for name in ENGINES]
        rows = at_once(lambda row: row[0].call(row[1], row[2]), callers)
        inward, outward = rows[: len(self.open)], rows[len(self.open) :]
        return [heard for row in inward for heard in row], [heard for row in outward for heard in row]

    def on_all(self, command: str, names: Sequence[str] = ()) -> None:
        at_once(lambda name: self.nodes[name].root(command), names or list(self.nodes))


@dataclass
class Matrix:
    """All calls of one round."""

    calls: list[Heard]

    @property
    def flows(self) -> list[Heard]:
        """Those with a firewall between the two."""
        return [heard for heard in self.calls if heard.through_a_firewall]

    @property
    def wrong(self) -> list[str]:
        return [str(heard) for heard in self.flows if not heard.right]

    @property
    def unanswered(self) -> list[str]:
        """Those with no firewall in between, that nothing answers: a call that is stopped there would prove nothing."""
        controls = [heard for heard in self.calls if not heard.through_a_firewall and not heard.passed]
        # A host is kept from calling its own container, so that is asked elsewhere.
        return [str(heard) for heard in controls if heard.port != PUBLISHED or heard.target.name not in ENGINES]

    @property
    def zones(self) -> set[tuple[str, str, str, bool]]:
        """What was tried between hosts, without the strangers: from zone to zone, on which port, by IPv6 or not."""
        hosts = {"management", *(spec.name for spec in HOSTS)}
        found = [heard for heard in self.flows if {heard.source.name, heard.target.name} <= hosts]
        return {(heard.source.zone, heard.target.zone, heard.port, ":" in heard.address) for heard in found}


Record = Callable[[str, object], None]


def at_once(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(work, items))


def container(node: Node) -> Party:
    """The container of a host, as one who calls."""
    process = node.root("podman inspect --format '{{.State.Pid}}' published")
    run = on_host(node, f"nsenter --target {process} --net ")
    return Party(f"container on {node.name}", "none", CONTAINERS, False, run)


def on_host(node: Node, before: str = "") -> Callable[[str], str]:
    def run(calls: str) -> str:
        done = fleet.execute(node.lab, node.name, f"{before}python3 {_SCRIPT} call", stdin=calls)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def on_this_machine(*before: str) -> Callable[[str], str]:
    def run(calls: str) -> str:
        command = [*before, sys.executable, packets.__file__, "call"]
        return subprocess.run(command, input=calls, capture_output=True, text=True, check=True).stdout

    return run


@contextmanager
def listening(name: str, addresses: Sequence[str], *before: str) -> Iterator[int]:
    """Listeners on this machine, or in a namespace of it. Yields the process."""
    command = [*before, sys.executable, packets.__file__, "serve", name, ",".join(addresses), ",".join(PORTS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.kill()


@contextmanager
def stranger(lab: Lab, zone: str) -> Iterator[Party]:
    """One with an address of a zone and a cable to the lab's bridge. Both are gone with the process."""
    name, last = f"stranger-{zone}", STRANGERS[zone]
    addresses = [f"{lab.subnet6}::{last:x}", *([f"{lab.subnet}.{last}"] if last < 256 else [])]
    bridge = json.loads(_ip("-json", "address", "show", "to", lab.gateway))[0]["ifname"]
    with listening(name, addresses, "unshare", "--net") as process:
        cable, inside = f"qz{process}", ("nsenter", f"--target={process}", "--net")
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", f"{process}")
        _ip("link", "set", cable, "master", bridge, "up")
        for device in ("lo", "eth0"):
            _ip("link", "set", device, "up", before=inside)
        for address in addresses:
            # Without the second in which IPv6 asks whether somebody else has the address.
            length, more = (64, ["nodad"]) if ":" in address else (24, [])
            _ip("address", "add", f"{address}/{length}", "dev", "eth0", *more, before=inside)
        yield Party(name, zone, tuple(addresses), False, on_this_machine(*inside))


def _ip(*words: str, before: Sequence[str] = ()) -> str:
    return subprocess.run([*before, "ip", *words], capture_output=True, text=True, check=True).stdout


@contextmanager
def built(folder: Path) -> Iterator[House]:
    """The lab, provisioned, with listeners everywhere and a stranger in each zone."""
    with contextmanager(hosts_of)("test-zones", HOSTS) as nodes, ExitStack() as stack:
        at_once(lambda names: provision([nodes[name] for name in names], folder), [["inference"], CLOSED])
        lab = next(iter(nodes.values())).lab
        controller = (lab.gateway, f"{lab.subnet6}::1")
        stack.enter_context(listening("management", controller))
        parties = [Party("management", "management", controller, False, on_this_machine())]
        parties += at_once(host, list(nodes.values()))
        parties += [stack.enter_context(stranger(lab, zone)) for zone in STRANGERS]
        yield House(nodes, parties)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with built(tmp_path_factory.mktemp("zones")) as house:
        yield house


def provision(nodes: Sequence[Node], folder: Path) -> None:
    names = [node.name for node in nodes]
    folder = folder / names[0]
    folder.mkdir()
    first = folder / "first.py"
    first.write_text(_EXPORTER if names == ["inference"] else _CLOSED.format(flows=_FLOWS))
    more = [DEPLOY] if names == ["inference"] else []
    inventory = write_inventory(folder, {}, names)
    run = run_pyinfra(nodes[0], "-y", *more, inventory=inventory, deploy=str(first), timeout=550)
    assert run.code == 0, run.text[-4000:]


def host(node: Node) -> Party:
    """A lab host with listeners, which are there again after a reboot."""
    item = next(item for item in node.lab.hosts if item.name == node.name)
    addresses = (item.address, node.lab.address6(item))
    ports = [port for port in PORTS if node.name not in TAKEN.get(port, ())]
    write(node, _SCRIPT, Path(packets.__file__).read_text())
    unit = _LISTENERS.format(script=_SCRIPT, name=node.name, addresses=",".join(addresses), ports=",".join(ports))
    write(node, "/etc/systemd/system/listeners.service", unit)
    if node.name in CLOSED:
        # Its package starts it with a site on port 80. After a boot the two would take it from each other.
        node.root("systemctl disable --quiet --now nginx.service")
    node.root("systemctl enable --quiet --now listeners.service")
    return Party(node.name, item.zone, addresses, True, on_host(node))


@pytest.fixture(scope="module")
def published(house: House) -> House:
    """The same, with a container on each inference host that publishes a port by podman's own rules."""
    unit = _CONTAINER.format(script=_SCRIPT, port=PUBLISHED.partition("/")[0])
    for name in ENGINES:
        write(house.nodes[name], "/etc/systemd/system/published.service", unit)
    house.on_all(_PREPARE_PODMAN.format(*CONTAINERS), ENGINES)
    return house


def reboot(node: Node) -> None:
    before = node.root("cut -d' ' -f22 /proc/1/stat")
    node.root("systemctl reboot", check=False)
    for _ in range(120):
        time.sleep(0.5)
        if node.root("cut -d' ' -f22 /proc/1/stat", check=False) not in ("", before) and (
            node.root("systemctl is-active multi-user.target", check=False) == "active"
        ):
            return
    raise AssertionError(f"{node.name} does not come back")


@contextmanager
def without_the_table(house: House) -> Iterator[None]:
    house.on_all("nft delete table inet quench_forward", ENGINES)
    try:
        yield
    finally:
        house.on_all("systemctl restart quench-forward.service", ENGINES)


def assert_as_in_the_table(house: House, record: Record) -> None:
    """The whole matrix, and that it proves something: all that did not pass would have been answered."""
    leaks: list[str] = []
    for _ in range(3):
        matrix = house.matrix()
        # What passes once and should not has passed. What should and does not, or is cut off, may be a busy machine.
        leaks += [str(heard) for heard in matrix.flows if heard.passed and not heard.allowed]
        if not matrix.unanswered and not matrix.wrong:
            break
    record("flows_tried", len(matrix.flows))
    record("flows_wrong", json.dumps(sorted({*leaks, *matrix.wrong})))
    assert leaks == []
    assert matrix.unanswered == []
    assert matrix.wrong == []
    # Six zones and five others each, all ports, IPv4 and IPv6; then all that was tried.
    assert len({flow for flow in matrix.zones if flow[0] != flow[1]}) == 6 * 5 * 12 * 2
    # Seven among themselves, and five strangers before six firewalls, both ways, by IPv4 and IPv6; the world by IPv6.
    assert len(matrix.flows) == 12 * (2 * (7 * 6 + 2 * 5 * 6) + 2 * 6)


def assert_only_the_table_stops_containers(house: House) -> None:
    """What the containers' own rules let through, and that nothing of it passes with quench-forward.service.

    Outward, the zone `trusted`, which is closed, stops them as well.
    """
    inward, outward = house.containers()
    assert [str(heard) for heard in inward + outward if heard.passed] == []
    with without_the_table(house):
        for _ in range(3):
            inward, outward = house.containers()
            assert [str(heard) for heard in outward if heard.passed] == []
            if all(heard.passed for heard in inward):
                break
    assert [str(heard) for heard in inward if not heard.passed] == []
    assert {heard.answer for heard in inward} == {"container"}
    # Two hosts, and the controller and five strangers by IPv4 and IPv6, and the world by IPv6.
    assert (len(inward), len(outward)) == (2 * (2 * 6 + 1), 2 * (2 * 6 + 1) * 12)


def test_between_the_zones_passes_what_the_table_says_and_nothing_else(house: House, record_property: Record) -> None:
    assert_as_in_the_table(house, record_property)


def test_a_container_that_publishes_a_port_changes_nothing(published: House, record_property: Record) -> None:
    assert_as_in_the_table(published, record_property)


def test_without_the_table_for_forwarding_containers_would_go_past_all_zones(published: House) -> None:
    assert_only_the_table_stops_containers(published)


def test_a_container_asks_its_host_for_names_and_for_nothing_else(published: House) -> None:
    # podman puts its networks into firewalld's zone `trusted`, which as it comes accepts everything.
    answering: set[str] = set()
    for _ in range(3):
        for party in published.engines:
            heard = container(published.nodes[party.name]).call([party], list(PORTS))
            assert len(heard) == 12 * 2
            passed = {one.port for one in heard if one.passed}
            assert passed <= {"53/tcp", "53/udp"}
            answering |= {party.name} if passed else set()
        if answering == set(ENGINES):
            break
    # Else a container that calls nobody at all would do.
    assert answering == set(ENGINES)


def test_a_reload_of_firewalld_changes_nothing(published: House, record_property: Record) -> None:
    published.on_all("firewall-cmd --reload")
    # firewalld 1.3.3 takes podman's rules away with its own, and the port would be closed for that reason alone.
    published.on_all("podman network reload --all", ENGINES)
    assert_as_in_the_table(published, record_property)
    assert_only_the_table_stops_containers(published)


def test_a_reboot_changes_nothing(published: House, record_property: Record) -> None:
    at_once(reboot, list(published.nodes.values()))
    assert_as_in_the_table(published, record_property)
    assert_only_the_table_stops_containers(published)
