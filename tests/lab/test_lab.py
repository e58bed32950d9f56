"""The lab itself: real hosts, no way out, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess

from support import Node, run_quench

from quench.lab import fleet
from quench.lab.machine import detect, podman
from quench.lab.state import free_slot, load


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


def test_a_host_is_run_by_systemd_and_has_no_way_out(untouched_stand_in: Node) -> None:
    assert untouched_stand_in.root("cat /proc/1/comm") == "systemd"
    assert untouched_stand_in.root("ip route show default; ip -6 route show default") == ""
    # It reaches the mirror, and that alone.
    mirror = f"{untouched_stand_in.lab.gateway}/8080"
    assert untouched_stand_in.root(f"timeout 5 bash -c '</dev/tcp/{mirror}' && echo reached") == "reached"


def test_the_login_is_an_ordinary_user(untouched_stand_in: Node) -> None:
    said = run_quench(untouched_stand_in, "lab", "ssh", "node1", "--", "id", "-u")
    assert said.code == 0, said.err
    assert int(said.out) >= 1000


def test_each_host_has_a_host_key_of_its_own_that_is_known(untouched_stand_in: Node) -> None:
    known = (untouched_stand_in.lab.folder / "known_hosts").read_text()
    public = untouched_stand_in.root("cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub")
    assert f"{untouched_stand_in.address} ssh-ed25519 {public}" in known


def test_up_keeps_what_is_there(untouched_stand_in: Node) -> None:
    start = untouched_stand_in.root("stat -c %Y /proc/1")
    lab = fleet.up(untouched_stand_in.lab.name, nodes=1, system="debian-12", engine="stand-in")
    assert lab == load(untouched_stand_in.lab.name)
    assert untouched_stand_in.root("stat -c %Y /proc/1") == start


def test_status_is_there_for_machines_and_down_leaves_nothing_but_the_cache() -> None:
    lab = fleet.up("test-down", nodes=1, system="debian-12", engine="stand-in")
    node = Node(lab, "node1")
    assert node.root("systemctl is-system-running --wait") == "running"
    status = json.loads(run_quench(node, "lab", "status", "--json").out)
    wanted = {"name": "node1", "address": node.address, "system": "debian-12", "gpus": "none"}
    assert status["hosts"] == [{**wanted, "packages": [], "state": "running"}]
    assert run_quench(node, "lab", "down").code == 0
    assert not lab.folder.exists()
    assert fleet.execute(lab, "node1", "true").returncode != 0
    assert f"{lab.gateway}/" not in ip("-brief", "address")
    again = run_quench(node, "lab", "status")
    assert again.code == 1
    assert "the lab 'test-down' is not up; start it: quench lab up --name test-down" in again.err


def test_down_leaves_nothing_of_hosts_that_were_killed_with_all_that_watched_them() -> None:
    """As at the end of a job of CI."""
    lab = fleet.up("test-down", nodes=1, system="debian-12", engine="stand-in")
    bridge = next(line.split()[0] for line in ip("-brief", "address").splitlines() if f" {lab.gateway}/" in line)
    words = ("inspect", "--format={{.State.ConmonPid}} {{.State.Pid}}", "quench-lab-test-down-node1")
    for process in podman(detect(), *words).split():
        os.kill(int(process), signal.SIGKILL)
    fleet.down("test-down")
    assert bridge not in ip("-brief", "link")


def test_a_new_lab_leaves_addresses_alone_that_this_machine_has() -> None:
    slot = free_slot()
    ip("link", "add", "quench-test", "type", "bridge")
    try:
        ip("address", "add", f"198.18.{slot}.1/24", "dev", "quench-test")
        assert free_slot() != slot
    finally:
        ip("link", "delete", "quench-test")
