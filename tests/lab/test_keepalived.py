"""Two balancers share an address: it answers elsewhere within 3 s of whatever ends a frontend or a host.

Real: keepalived, firewalld, every packet. The frontend is a stand-in, a few lines of Python that answer by HTTPS; times
are those of a client, the machine that this runs on, which connects anew twenty times a second.
"""

from __future__ import annotations

import http.client
import json
import shlex
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import CHECKOUT, STOCK, Node, Run, hosts_of, run_pyinfra, write_inventory

from quench.lab import fleet
from quench.lab.state import HostSpec
from roles.keepalived.files import CHECK, CONFIG

HOSTS = (HostSpec("node1", "debian-12", packages=STOCK), HostSpec("node2", "debian-13", packages=STOCK))
# Last parts of addresses that no host of the lab has.
VIRTUAL, STRANGER = 250, 254
ROUTER_ID = 51
WITHIN = 3.0
SPOILED = {
    "    nopreempt\n": "    nopreemption\n",
    "advert_int 0.5": "advert_int half",
    "interface eth0": "interface eth9",
    "router_id 51": "router_id 300",
    "        frontend\n": "        backend\n",
    "    enable_script_security\n": "",
}

_DEPLOY = """\
from quench import Flow, allow, preflight
from roles.base import base
from roles.firewall import firewall
from roles.keepalived import keepalived

preflight()
base()
allow(Flow("test", "in", ("management",), 443, "what this test calls"))
keepalived()
firewall()
"""
_FRONTEND = """\
import http.server, socket, ssl

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = socket.gethostname().encode()
        self.send_response(404)
        self.send_header("Content-Length", str(len(name)))
        self.end_headers()
        self.wfile.write(name)

class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/etc/frontend.pem")
server = Server(("::", 443), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
"""
_UNIT = """\
[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/frontend.py

[Install]
WantedBy=multi-user.target
"""
# Sources of the VRRP that arrives on the wire, and of that which a program hears behind the firewall.
_LISTEN = """\
import json, socket, struct, time
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
heard = socket.socket(socket.AF_INET, socket.SOCK_RAW, 112)
found = {"wire": set(), "heard": set()}
end = time.monotonic() + 2
for name, listener in (("wire", wire), ("heard", heard)):
    listener.setblocking(False)
print("ready", flush=True)
while time.monotonic() < end:
    for name, listener in (("wire", wire), ("heard", heard)):
        try:
            packet = listener.recv(2000)
        except BlockingIOError:
            continue
        if packet[9] == 112:
            found[name].add(socket.inet_ntoa(packet[12:16]))
    time.sleep(0.001)
print(json.dumps({name: sorted(sources) for name, sources in found.items()}))
"""


@dataclass
class Balancers:
    """The hosts, and the addresses that they share."""

    nodes: dict[str, Node]
    address: str
    address6: str

    def holders(self) -> list[str]:
        """Hosts that have the address, and with it the other one."""
        shown = {name: node.root("ip -brief address show dev eth0") for name, node in self.nodes.items()}
        has = {name: (f" {self.address}/" in text, f" {self.address6}/" in text) for name, text in shown.items()}
        assert all(one == other for one, other in has.values()), shown
        return [name for name, (one, _) in has.items() if one]

    def holder(self) -> Node:
        (name,) = self.holders()
        return self.nodes[name]

    def other(self, node: Node) -> Node:
        return next(other for other in self.nodes.values() if other.name != node.name)


@dataclass
class Client:
    """Somebody who calls an address again and again, and notes who answers."""

    address: str
    answers: list[tuple[float, str]] = field(default_factory=list)

    def call(self) -> None:
        started = time.monotonic()
        name = asked(self.address)
        if name:
            self.answers.append((started, name))

    def outage(self, before: str, after: str) -> float:
        """Seconds from the last call that the one has answered to the first that the other has."""
        return min(at for at, name in self.answers if name == after) - max(
            at for at, name in self.answers if name == before
        )


def asked(address: str, timeout: float = 0.5) -> str:
    """The name of the host that answers at an address, or an empty text."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(address, 443, timeout=timeout, context=context)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    except OSError:
        return ""
    finally:
        connection.close()


@contextmanager
def calling(address: str) -> Iterator[Client]:
    client, ended = Client(address), threading.Event()

    def work() -> None:
        while not ended.wait(0.05):
            client.call()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield client
    finally:
        ended.set()
        thread.join()


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def moved(balancers: Balancers, end: Callable[[Node], object]) -> float:
    """How long nobody answers after something has ended on the host that has the address."""
    before = balancers.holder()
    after = balancers.other(before)
    # Both frontends have to have been good for a while.
    wait_for(lambda: asked(before.address) == before.name and asked(after.address) == after.name)
    time.sleep(2.5)
    with calling(balancers.address) as client:
        wait_for(lambda: len(client.answers) > 5)
        assert {name for _, name in client.answers} == {before.name}
        end(before)
        wait_for(lambda: any(name == after.name for _, name in client.answers))
        # It stays there.
        time.sleep(1)
        later = len(client.answers) + 5
        wait_for(lambda: len(client.answers) >= later)
    assert [name for _, name in client.answers][-5:] == [after.name] * 5
    return client.outage(before.name, after.name)


def provision(balancers: Balancers, folder: Path, **changes: object) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    deploy = folder / "deploy.py"
    deploy.write_text(_DEPLOY)
    shared = {
        "keepalived_addresses": [f"{balancers.address}/24", f"{balancers.address6}/64"],
        "keepalived_interface": "eth0",
        "keepalived_router_id": ROUTER_ID,
        "keepalived_balancers": [node.address for node in balancers.nodes.values()],
        "keepalived_check_server_name": "llm.example.org",
        **changes,
    }
    data = {name: {**shared, "keepalived_address": node.address} for name, node in balancers.nodes.items()}
    inventory = write_inventory(folder, data)
    return run_pyinfra(
        next(iter(balancers.nodes.values())), "-y", "--json", inventory=inventory, deploy=str(deploy), timeout=300
    )


def write(node: Node, path: str, text: str) -> None:
    done = fleet.execute(node.lab, node.name, f"cat >{path}", stdin=text)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def balancers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancers]:
    """Two provisioned hosts, with a frontend each."""
    with contextmanager(hosts_of)("test-keepalived", HOSTS) as nodes:
        lab = nodes["node1"].lab
        found = Balancers(nodes, f"{lab.subnet}.{VIRTUAL}", f"{lab.subnet6}::{VIRTUAL:x}")
        for node in nodes.values():
            pair = [(lab.folder / "ca" / f"{node.address}.{end}").read_text() for end in ("crt", "key")]
            write(node, "/etc/frontend.pem", "".join(pair))
            write(node, "/usr/local/lib/frontend.py", _FRONTEND)
            write(node, "/etc/systemd/system/frontend.service", _UNIT)
        run = provision(found, tmp_path_factory.mktemp("first"))
        assert run.code == 0, run.text[-4000:]
        # Without a frontend nobody has the address.
        assert found.holders() == []
        for node in nodes.values():
            # Python came with firewalld.
            node.root("systemctl enable --quiet --now frontend.service")
        wait_for(lambda: len(found.holders()) == 1)
        yield found


def test_the_address_is_on_one_host_which_answers(balancers: Balancers) -> None:
    (name,) = balancers.holders()
    assert asked(balancers.address) == name
    assert asked(balancers.address6) == name


def test_a_second_run_changes_nothing(balancers: Balancers, tmp_path: Path) -> None:
    run = provision(balancers, tmp_path)
    assert run.code == 0, run.text[-4000:]
    assert run.totals["hosts"] > 0 and run.totals["success"] == 0, run.text[-3000:]


def test_the_host_checks_pass(balancers: Balancers, tmp_path: Path) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(fleet.ssh_config(balancers.nodes["node1"].lab))
    hosts = ",".join(f"ssh://{name}" for name in balancers.nodes)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/host/test_keepalived.py",
         "tests/host/test_firewall.py::test_the_kernel_has_the_zones_that_the_files_have", "--sudo",
         f"--hosts={hosts}", f"--ssh-config={config}"],
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert "skipped" not in done.stdout.splitlines()[-1]


def test_the_check_before_an_installation_refuses_what_keepalived_would_ignore(balancers: Balancers) -> None:
    good = balancers.nodes["node1"].root(f"cat {CONFIG}")
    spoiled = [good.replace(old, new, 1) for old, new in SPOILED.items()]
    assert good not in spoiled
    for node in balancers.nodes.values():
        found = [node.root(f"{tried(text)} >/dev/null 2>&1 && echo taken || echo refused") for text in [good, *spoiled]]
        assert found == ["taken", *["refused"] * len(spoiled)]


def tried(text: str) -> str:
    """The role's own check, on a file elsewhere."""
    return f"printf '%s\\n' {shlex.quote(text)} >/tmp/tried.conf && {CHECK.replace(CONFIG, '/tmp/tried.conf')}"


def test_vrrp_from_a_stranger_does_not_get_through(balancers: Balancers) -> None:
    sender = balancers.holder()
    listener = balancers.other(sender)
    stranger = f"{sender.lab.subnet}.{STRANGER}"
    assert stranger not in (node.address for node in balancers.nodes.values())
    ended = threading.Event()

    def speak() -> None:
        while not ended.wait(0.1):
            announce(stranger, listener.address, balancers.address)

    thread = threading.Thread(target=speak)
    thread.start()
    try:
        done = fleet.execute(listener.lab, listener.name, "python3 -", stdin=_LISTEN)
    finally:
        ended.set()
        thread.join()
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wire"] == sorted([sender.address, stranger])
    assert found["heard"] == [sender.address]
    assert balancers.holder() == sender


def announce(source: str, target: str, address: str) -> None:
    """An announcement of VRRPv3, RFC 9568 5.1, as from a router that goes before all others."""
    head = struct.pack("!BBBBHH4s", 0x31, ROUTER_ID, 255, 1, 50, 0, socket.inet_aton(address))
    pseudo = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!BBH", 0, 112, len(head))
    total = sum(struct.unpack(f"!{len(pseudo + head) // 2}H", pseudo + head))
    total = (total & 0xFFFF) + (total >> 16)
    body = head[:6] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + head[8:]
    first = struct.pack("!BBHHHBBH", 0x45, 0xC0, 20 + len(body), 0, 0, 255, 112, 0)
    packet = first + socket.inet_aton(source) + socket.inet_aton(target) + body
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as speaker:
        speaker.sendto(packet, (target, 0))


Record = Callable[[str, object], None]


@pytest.mark.alone
@pytest.mark.parametrize(
    ("how", "command", "back", "within"),
    [
        ("stopped", "systemctl stop frontend", "systemctl start frontend", WITHIN),
        # Twice 1 s until the check gives up, a second apart.
        ("hangs", "systemctl kill --signal=STOP frontend", "systemctl kill --signal=CONT frontend", 5.0),
    ],
)
def test_a_frontend_that_answers_no_more_loses_the_address_and_does_not_take_it_back(
    balancers: Balancers, record_property: Record, how: str, command: str, back: str, within: float
) -> None:
    before = balancers.holder()
    outage = moved(balancers, lambda node: node.root(command))
    record_property(f"seconds_until_the_address_answers_elsewhere_{how}", round(outage, 2))
    assert balancers.holders() == [balancers.other(before).name]
    before.root(back)
    wait_for(lambda: asked(before.address) == before.name)
    time.sleep(4)
    assert balancers.holders() == [balancers.other(before).name]
    assert outage < within


@pytest.mark.alone
def test_a_host_that_is_switched_off_loses_the_address_and_does_not_take_it_back(
    balancers: Balancers, record_property: Record
) -> None:
    before = balancers.holder()
    outage = moved(balancers, lambda node: fleet.switch_off(node.lab, node.name))
    record_property("seconds_until_the_address_answers_elsewhere_switched_off", round(outage, 2))
    fleet.switch_on(before.lab, before.name)
    wait_for(lambda: before.root("systemctl is-active keepalived firewalld", check=False) == "active\nactive", 60)
    wait_for(lambda: asked(before.address) == before.name)
    time.sleep(4)
    assert balancers.holders() == [balancers.other(before).name]
    assert outage < WITHIN
