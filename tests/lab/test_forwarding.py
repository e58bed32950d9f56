"""Which forwarded packets the table lets through between bridges: in network namespaces of this machine, without hosts.

Real: the kernel's bridges, br_netfilter as docker switches it on, nft, and every packet. The bridges have names that
docker gives; the host's own way out is a bridge too, as on hosts with virtual machines.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import get_args

import packets
import pytest

from quench.files import ManagedFile
from quench.settings import Platform
from roles.firewall import FirewallSettings, files

# Bridge, and its network, of each who calls and answers.
PARTIES = {
    "one": ("docker0", 17),
    "two": ("docker0", 17),
    "other": ("br-0123456789ab", 18),
    "world": ("br0", 9),
}
BETWEEN_CONTAINERS = {("one", "two"), ("two", "one")}


def run(*words: str, text: str = "") -> str:
    return subprocess.run(words, input=text, capture_output=True, text=True, check=True).stdout


@contextmanager
def process(*words: str) -> Iterator[str]:
    """A process in a network namespace of its own, by whose number that can be entered. It is over with the test."""
    with subprocess.Popen(["unshare", "--net", *words], stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None and started.stdout.readline() == "ready\n"
            yield str(started.pid)
        finally:
            started.kill()


class Router:
    """A host that forwards for everybody, as long as nobody keeps it from it."""

    def __init__(self, stack: ExitStack) -> None:
        self.pid = stack.enter_context(process("sh", "-c", "echo ready; exec sleep infinity"))
        self.parties: dict[str, str] = {}
        for forwarding in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
            self.inside("sysctl", "-qw", f"net.{forwarding}=1")
        for bridge, net in dict(PARTIES.values()).items():
            self.inside("ip", "link", "add", bridge, "type", "bridge")
            for address in (f"10.{net}.0.1/24", f"fd{net:02}::1/64"):
                self.inside("ip", "address", "add", address, "dev", bridge, *(["nodad"] if ":" in address else []))
            self.inside("ip", "link", "set", bridge, "up")
        for last, name in enumerate(PARTIES, start=2):
            self.connect(name, last, stack)
        # There is a default route only by the last.
        self.inside("ip", "route", "add", "default", "via", self.addresses("world")[0])
        for family in ("ip", "ip6"):
            self.inside("sysctl", "-qw", f"net.bridge.bridge-nf-call-{family}tables=1")

    def connect(self, name: str, last: int, stack: ExitStack) -> None:
        bridge, net = PARTIES[name]
        addresses = self.addresses(name)
        words = (sys.executable, packets.__file__, "serve", name, ",".join(addresses), "80/tcp")
        self.parties[name] = pid = stack.enter_context(process(*words))
        self.inside("ip", "link", "add", f"cable{last}", "type", "veth", "peer", "name", "eth0", "netns", pid)
        self.inside("ip", "link", "set", f"cable{last}", "master", bridge, "up")
        enter = ("nsenter", f"--target={pid}", "--net", "ip")
        run(*enter, "link", "set", "eth0", "up")
        for address, length, gateway in zip(addresses, (24, 64), (f"10.{net}.0.1", f"fd{net:02}::1"), strict=True):
            nodad = ["nodad"] if ":" in address else []
            run(*enter, "address", "add", f"{address}/{length}", "dev", "eth0", *nodad)
            run(*enter, "route", "add", "default", "via", gateway)

    @staticmethod
    def addresses(name: str) -> list[str]:
        last, net = list(PARTIES).index(name) + 2, PARTIES[name][1]
        return [f"10.{net}.0.{last}", f"fd{net:02}::{last}"]

    def inside(self, *words: str, text: str = "") -> str:
        return run("nsenter", f"--target={self.pid}", "--net", *words, text=text)

    def passing(self) -> list[tuple[str, str, bool]]:
        """From whom to whom a call is answered, and whether by IPv6."""
        with ThreadPoolExecutor(len(PARTIES)) as pool:
            return sorted(one for found in pool.map(self.passing_from, PARTIES) for one in found)

    def passing_from(self, source: str) -> list[tuple[str, str, bool]]:
        called = [(target, address) for target in PARTIES if target != source for address in self.addresses(target)]
        words = ("nsenter", f"--target={self.parties[source]}", "--net", sys.executable, packets.__file__, "call")
        heard = json.loads(run(*words, text=json.dumps([[address, "80/tcp"] for _, address in called])))
        answers = zip(called, heard, strict=True)
        return [(source, target, ":" in address) for (target, address), answer in answers if answer == target]


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    with ExitStack() as stack:
        yield Router(stack)


def table(platform: str) -> str:
    data = {"platform": platform, "firewall_zones": {"management": ["10.9.9.0/24"]}, "firewall_zone": "management"}
    managed = files(FirewallSettings.load("node1", data), [])
    texts = {file.dest: file.content for file in managed if isinstance(file, ManagedFile)}
    return texts["/etc/nftables/quench-forward.nft"]


def test_without_the_table_everybody_reaches_everybody(router: Router) -> None:
    assert len(router.passing()) == 4 * 3 * 2


@pytest.mark.parametrize("platform", get_args(Platform))
def test_containers_of_one_network_reach_each_other_and_nothing_else_is_forwarded(
    router: Router, platform: str
) -> None:
    router.inside("nft", "--file", "-", text=table(platform))
    try:
        passing = router.passing()
    finally:
        router.inside("nft", "delete", "table", "inet", "quench_forward")
    assert passing == sorted((*pair, ipv6) for pair in BETWEEN_CONTAINERS for ipv6 in (False, True))
