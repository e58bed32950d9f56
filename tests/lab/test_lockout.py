"""Locking oneself out: each way is refused beforehand, or undone by the host itself while nobody gets in.

The hosts are worked on at the same time: most of it is waiting for their timers.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from support import (
    CHECKOUT,
    STOCK,
    Node,
    Run,
    environment,
    hosts_of,
    pyinfra_command,
    run_pyinfra,
    write,
    write_inventory,
)

from quench.lab import fleet
from quench.lab.state import HostSpec

DEPLOY = "deploys/hardening.py"
# As short as the settings allow: the attempts wait for it.
SECONDS = 10
ROLLBACK = {f"{role}_rollback_seconds": SECONDS for role in ("base", "hardening", "firewall")}
# From the end of the timer until the host is reached as before: files, units that start anew, and the questions of this
# test, on a machine that has other work. A reboot stops and starts all that the host has.
ALLOWANCE, REBOOT = 30, 60
# A run on a machine that is busy with others.
PATIENCE = 300
ELSEWHERE = {"management": ["192.0.2.0/24"], "inference": ["198.51.100.0/24"]}


@dataclass
class Outcome:
    """What became of a host that somebody tried to lock himself out of.

    Attributes:
        away: seconds from the start of the host's timer until it was reached and all was as before; None: it had none.
    """

    run: Run
    before: str
    after: str
    reached: bool
    pending: str
    rollbacks: int
    away: float | None


Attempt = Callable[[Node, Path], Run]


def provision(node: Node, folder: Path, **changes: Any) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    inventory = write_inventory(folder, {"*": {**ROLLBACK, **changes}}, [node.name])
    return run_pyinfra(node, "-y", inventory=inventory, deploy=DEPLOY, timeout=PATIENCE)


def setting(**changes: Any) -> Attempt:
    """A run with settings that would cut the controller off."""
    return lambda node, folder: provision(node, folder, **changes)


def as_administrator(**changes: Any) -> Attempt:
    """The same, by the administrator's own login, on which the role base decides."""
    return lambda node, folder: provision(node, folder, ssh_user="ops", **changes)


def with_fault(path: str, text: str, **changes: Any) -> Attempt:
    """A run on a host where a file of somebody else stands in the way; it is taken away afterwards."""

    def attempt(node: Node, folder: Path) -> Run:
        node.root(f"mkdir -p {Path(path).parent}")
        write(node, path, f"{text}\n")
        node.root("systemctl daemon-reload")
        run = provision(node, folder, **changes)
        wait_for(lambda: not pending(node))
        # And nothing else: what this run has stopped is for the way back to start.
        node.root(f"rm {path} && systemctl daemon-reload")
        return run

    return attempt


def killed(reboot: bool) -> Attempt:
    """A run that dies after the new files are there, and before it has proved that they let it in."""

    def attempt(node: Node, folder: Path) -> Run:
        folder.mkdir(parents=True, exist_ok=True)
        inventory = write_inventory(folder, {"*": {**ROLLBACK, "hardening_ssh_users": ["nobody"]}}, [node.name])
        command = pyinfra_command(inventory, "-y", deploy=DEPLOY)
        process = subprocess.Popen(
            command, cwd=CHECKOUT, env=environment(node), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        begun = wait_for(lambda: changed(node) or process.poll() is not None, PATIENCE, pause=0.1)
        assert begun and process.poll() is None, process.communicate(timeout=60)[1][-3000:]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert pending(node) == "hardening"
        if reboot:
            node.root("systemctl --no-block reboot")
        return Run(-9, "", "")

    return attempt


def overtaken() -> Attempt:
    """A run whose host goes back between the change and the proof, as it does while another host of the run is slow."""

    def attempt(node: Node, folder: Path) -> Run:
        # What the run asks meanwhile takes its time: several of these, each by a program that sudo finds first.
        slow = "/usr/local/sbin/findmnt"
        write(node, slow, '#!/bin/sh\nsleep 5\nexec /usr/bin/findmnt "$@"\n')
        node.root(f"chmod 755 {slow}")
        try:
            with ThreadPoolExecutor(1) as pool:
                run = pool.submit(provision, node, folder, hardening_banner="Another one, for a moment")
                assert wait_for(lambda: changed(node) or run.done(), PATIENCE, pause=0.1)
                node.root("systemctl start quench-rollback-hardening.service", check=False)
                return run.result()
        finally:
            node.root(f"rm {slow}")

    return attempt


def changed(node: Node) -> bool:
    """Whether new files of hardening are there. Their timer is set before, and sshd takes them after."""
    guard = "/var/lib/quench/guard/hardening"
    there = f"test -e {guard}/armed && ! cmp -s {guard}/manifest /var/lib/quench/manifest/hardening"
    return fleet.execute(node.lab, node.name, there).returncode == 0


def reached(node: Node) -> bool:
    """Whether a new login works, by sshd and through the firewall."""
    words = fleet.ssh_command(node.lab, node.name)
    words[1:1] = ["-o", "ConnectTimeout=2", "-o", "BatchMode=yes"]
    try:
        return subprocess.run([*words, "sudo -n true"], capture_output=True, check=False, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:  # sshd goes down in the midst of the login
        return False


def pending(node: Node) -> str:
    done = fleet.execute(node.lab, node.name, "ls /var/lib/quench/guard 2>/dev/null; true")
    # A host that reboots cannot be asked.
    return done.stdout.strip() if done.returncode == 0 else "not known"


def wait_for(condition: Callable[[], bool], seconds: float = 90.0, pause: float = 1.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(pause)
    return False


# Attempt, and what the run says about it. An empty text: the run was killed and says nothing.
REFUSED = {
    "the controller is in no zone": (
        setting(firewall_zones=ELSEWHERE, firewall_zone="inference", base_service_zones=["inference"]),
        "from which this run logs in; put its network into one of these zones",
    ),
    "the controller's zone may not log in": (
        setting(firewall_ssh_zones=["app"]),
        "from which this run logs in; put its network into one of these zones",
    ),
    "sshd's port is another one": (
        setting(firewall_ssh_port=2222),
        "but this run has logged in to port 22; set firewall_ssh_port = 22",
    ),
    "a zone of somebody else binds an interface": (
        with_fault(
            "/etc/firewalld/zones/extra.xml", '<zone><interface name="eth0"/></zone>', firewall_log_denied="all"
        ),
        "extra.xml binds interfaces or networks past the zones; remove it",
    ),
    "sshd does not take its files": (
        with_fault("/etc/ssh/sshd_config.d/50-typo.conf", "PermitRoot never", hardening_ssh_users=["install"]),
        "this check refused the new files, and the old ones stay: sshd -t",
    ),
    "sshd has another value before": (
        with_fault(
            "/etc/ssh/sshd_config.d/00-first.conf", "PasswordAuthentication yes", hardening_ssh_users=["install"]
        ),
        "not in force: passwordauthentication no",
    ),
    "firewalld does not take its files": (
        with_fault("/etc/firewalld/zones/typo.xml", "<zone", firewall_log_denied="all"),
        "this check refused the new files, and the old ones stay",
    ),
}
UNDONE = {
    "nobody may log in": (
        setting(hardening_ssh_users=["nobody"]),
        "the new files of hardening keep the controller out",
    ),
    "sshd moves to another port": (
        setting(hardening_ssh_port=2222),
        "the new files of hardening keep the controller out",
    ),
    "the administrator's key is taken away": (
        as_administrator(
            base_admin_keys=["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExample x"]
        ),
        "the new files of base keep the controller out",
    ),
    "the administrator is somebody else": (
        as_administrator(base_admin_user="other"),
        "the new files of base keep the controller out",
    ),
    # With the new files; with the former ones it does, also while the fault is there.
    "firewalld does not start": (
        with_fault(
            "/etc/systemd/system/firewalld.service.d/zz-fault.conf",
            "[Service]\nExecStartPre=/bin/sh -c '! grep -q ^LogDenied=all /etc/firewalld/firewalld.conf'",
            firewall_log_denied="all",
        ),
        "the former files of firewall come back now",
    ),
    "the host goes back before the proof": (
        overtaken(),
        "the host went back to the former files of hardening before this run came to log in anew",
    ),
    "the run is killed": (killed(reboot=False), ""),
    "the run is killed and the host reboots": (killed(reboot=True), ""),
}
ATTEMPTS = {**REFUSED, **UNDONE}
HOSTS = 6


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    """Hosts with hardening and firewall."""
    systems = ("debian-12", "debian-13")
    specs = [HostSpec(f"node{number}", systems[number % 2], packages=STOCK) for number in range(1, HOSTS + 1)]
    for nodes in hosts_of("test-lockout", specs):
        every = list(nodes.values())
        run = provision_all(every, tmp_path_factory.mktemp("first"))
        assert run.code == 0, run.text[-4000:]
        yield every


@pytest.fixture(scope="module")
def outcomes(hosts: list[Node], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Every attempt on one of the hosts, and what became of it."""
    folder = tmp_path_factory.mktemp("attempts")
    free = Queue[Node]()
    for host in hosts:
        free.put(host)

    def on_a_free_host(name: str) -> Outcome:
        host = free.get()
        try:
            return tried(host, folder / name.replace(" ", "-"), ATTEMPTS[name][0])
        finally:
            free.put(host)

    # Those that wait for a timer first.
    names = [*UNDONE, *REFUSED]
    with ThreadPoolExecutor(HOSTS) as pool:
        return dict(zip(names, pool.map(on_a_free_host, names), strict=True))


def tried(node: Node, folder: Path, attempt: Attempt) -> Outcome:
    before, start = as_it_is(node), node.root("date +%s")
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        away = pool.submit(seconds_away, node, before, over)
        try:
            run = attempt(node, folder)
        finally:
            over.set()
    back = wait_for(lambda: reached(node) and not pending(node))
    return Outcome(run, before, as_it_is(node), back, pending(node), rollbacks(node, start), away.result())


def seconds_away(node: Node, before: str, over: threading.Event) -> float | None:
    """From the start of the host's timer until all is as before, or None if there was no timer until it was over.

    By a clock of this machine, from outside: the host's own may not be asked while it reboots.
    """
    armed = "ls /var/lib/quench/guard/*/armed 2>/dev/null"
    while fleet.execute(node.lab, node.name, armed).returncode != 0:
        if over.is_set():
            return None
        time.sleep(0.2)
    begin = time.monotonic()
    # The login comes last: one that fails counts against this machine, and sshd would keep it out for that.
    back = wait_for(lambda: not pending(node) and as_it_is(node) == before and reached(node), PATIENCE, pause=0.5)
    return time.monotonic() - begin if back else math.inf


def provision_all(nodes: list[Node], folder: Path) -> Run:
    """With the timers that the settings have by default: nobody is to be overtaken here."""
    folder.mkdir(parents=True, exist_ok=True)
    inventory = write_inventory(folder, {}, [node.name for node in nodes])
    return run_pyinfra(nodes[0], "-y", "--json", inventory=inventory, deploy=DEPLOY, timeout=PATIENCE)


def as_it_is(node: Node) -> str:
    """What Quench brought, and what the kernel, sshd and firewalld do: files that are back prove nothing alone.

    Without the stamps: after a rollback the next run is to start the units anew.
    """
    files = "\n".join(line for line in node.tree().splitlines() if "/quench/converged/" not in line)
    units = "ssh.service firewalld.service quench-forward.service"
    running = node.root(
        f"systemctl is-active {units}; systemctl is-enabled {units}; ss -Hltn | awk '{{ print $4 }}' | sort; "
        "firewall-cmd --state; firewall-cmd --get-log-denied; firewall-cmd --list-all-zones; "
        "firewall-cmd --info-policy=outgoing; nft list table inet quench_forward",
        check=False,
    )
    return f"{files}\n{running}"


def rollbacks(node: Node, start: str) -> int:
    """How often the host has brought former files back since then. A lab host's journal is in memory."""
    journal = f"journalctl --identifier=quench --output=cat --since=@{start}"
    return int(node.root(f"{journal} | grep -c 'back to what they were'; true"))


@pytest.mark.parametrize("name", ATTEMPTS)
def test_the_host_is_reached_as_before(
    outcomes: dict[str, Outcome], name: str, record_property: Callable[[str, object], None]
) -> None:
    outcome = outcomes[name]
    record_property("undone", outcome.rollbacks)
    assert outcome.reached, outcome.run.text[-3000:] + outcome.pending
    assert outcome.pending == ""
    assert outcome.after == outcome.before


@pytest.mark.parametrize("name", UNDONE)
def test_the_host_is_back_within_the_time_of_its_timer(outcomes: dict[str, Outcome], name: str) -> None:
    away = outcomes[name].away
    assert away is not None, "no timer was seen"
    assert away <= SECONDS + ALLOWANCE + (REBOOT if "reboots" in name else 0)


@pytest.mark.parametrize("name", ATTEMPTS)
def test_the_run_ends_with_a_clear_error(outcomes: dict[str, Outcome], name: str) -> None:
    run, said = outcomes[name].run, ATTEMPTS[name][1]
    assert run.code != 0
    assert said in run.text, run.text[-3000:]
    assert "Traceback" not in run.text and "internal exception" not in run.text


@pytest.mark.parametrize("name", ATTEMPTS)
def test_what_can_be_known_beforehand_changes_nothing_and_the_rest_is_undone_once(
    outcomes: dict[str, Outcome], name: str
) -> None:
    assert outcomes[name].rollbacks == (1 if name in UNDONE else 0), outcomes[name].run.text[-3000:]


def test_there_were_enough_attempts_of_each_kind(outcomes: dict[str, Outcome]) -> None:
    refused = [name for name, outcome in outcomes.items() if outcome.rollbacks == 0 and outcome.away is None]
    undone = [name for name, outcome in outcomes.items() if outcome.rollbacks == 1]
    assert (sorted(refused), sorted(undone)) == (sorted(REFUSED), sorted(UNDONE))
    assert len(refused) + len(undone) >= 10


def test_a_run_without_the_mistake_is_fine_afterwards(
    outcomes: dict[str, Outcome], hosts: list[Node], tmp_path: Path
) -> None:
    healed = provision_all(hosts, tmp_path / "healed")
    assert healed.code == 0, healed.text[-4000:]
    again = provision_all(hosts, tmp_path / "again")
    assert again.code == 0 and again.totals["hosts"] > 0 and again.totals["success"] == 0, again.text[-3000:]
