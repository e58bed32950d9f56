"""A node leaves a fleet under load: no request is lost, and nothing is left on it that it may not keep. Then it is
provisioned anew. The engine is the stand-in; all else is real."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from fleets import NAME, WORDS, Fleet, all_up, ask, forgotten, key_of, lost, servers
from support import MODEL, Node, Run, background, lab_data, run_pyinfra, run_quench, write_inventory

from quench.facts import STATE_DIRECTORY
from quench.operations.commands import remote_script
from tests.load.load import running


@pytest.fixture(autouse=True)
def all_nodes_are_up(fleet: Fleet) -> Iterator[None]:
    with forgotten(fleet):
        yield


@pytest.fixture
def leaver(fleet: Fleet) -> Node:
    return fleet.nodes[2]


def command(fleet: Fleet, folder: Path, *options: str, **changes: Any) -> list[str]:
    """`quench decommission` of the third node, of which some data is changed."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        "decommission", write_inventory(folder, {**fleet.changes, "node3": changes}), "node3", "--group-data",
        "inventories/group_data", "--name", NAME, "--drain-seconds", "60", "--yes", "--json", *options,
    ]  # fmt: skip


def decommission(fleet: Fleet, folder: Path, *options: str, **changes: Any) -> Run:
    return run_quench(fleet.nodes[0], *command(fleet, folder, *options, **changes))


def states(fleet: Fleet) -> list[str]:
    """The third node, as each balancer has it."""
    return [servers(balancer)["node3"]["status"] for balancer in fleet.balancers]


def set_ready(fleet: Fleet) -> None:
    for balancer in fleet.balancers:
        pool = servers(balancer)["node3"]["pxname"]
        assert ask(balancer, f"set server {pool}/node3 state ready") == ""


def copies(node: Node) -> list[str]:
    """Files on the node that hold a line of its private key."""
    reference = lab_data(node)["nginx_private_key"]
    line = Path(reference.removeprefix("file:")).read_text().splitlines()[2]
    # In halves, so that the command does not find itself in a log.
    half = len(line) // 2
    return node.root(
        f"grep -rlF --exclude-dir=proc --exclude-dir=sys --exclude-dir=dev -e '{line[:half]}''{line[half:]}' / "
        "2>/dev/null; true"
    ).splitlines()


def test_ctrl_c_while_it_drains_brings_the_node_back(fleet: Fleet, leaver: Node, tmp_path: Path) -> None:
    with running(fleet.load(key=key_of("demo"), streams=6, stream_words=WORDS, plain=2)) as tally:
        tally.wait(lambda tally: tally.flowing >= 6)
        with background(leaver, *command(fleet, tmp_path)) as begun:
            begun.wait_for("node3", "drain")
            begun.process.send_signal(signal.SIGINT)
            run = begun.end()
    assert run.code == 130, run.err
    assert json.loads(run.out)["reasons"] == ["interrupted; nothing was removed; node3 has its requests again"]
    assert "Traceback" not in run.err
    assert lost(tally) == []
    assert leaver.root(f"systemctl is-active vllm@{MODEL}.service") == "active"


def test_a_node_that_does_not_answer_is_taken_out_and_its_secrets_are_named(fleet: Fleet, tmp_path: Path) -> None:
    gone = {"ssh_port": 1, "ssh_connect_retries": 0}
    refused = decommission(fleet, tmp_path / "refused", **gone)
    assert refused.code == 1
    assert json.loads(refused.out)["outcome"] == "refused"
    assert "node3: node: does not answer" in refused.err
    assert states(fleet) == ["UP", "UP"]
    try:
        run = decommission(fleet, tmp_path / "dead", "--unreachable", **gone)
        assert states(fleet) == ["MAINT", "MAINT"]
    finally:
        set_ready(fleet)
    outcome = json.loads(run.out)
    assert (run.code, outcome["outcome"]) == (1, "unwiped")
    assert "node3: was not wiped: does not answer" in outcome["reasons"][0]
    assert "nginx_private_key" in outcome["reasons"][0]
    assert any("serial" in text for text in outcome["todo"])


def test_a_node_leaves_under_load_and_nothing_is_left_and_it_can_come_back(
    fleet: Fleet, leaver: Node, tmp_path: Path
) -> None:
    # As a rollout leaves it: a copy of every secret.
    leaver.root(remote_script("keep_release.sh", STATE_DIRECTORY, MODEL))
    assert "/etc/nginx/quench/tls.key" in copies(leaver)
    address = fleet.balancers[0].lab.shared_address
    with running(fleet.load(address=address, key=key_of("demo"), streams=6, stream_words=WORDS, plain=2)) as tally:
        tally.wait(lambda tally: tally.flowing >= 6)
        run = decommission(fleet, tmp_path / "first")
    assert run.code == 0, run.text[-3000:]
    assert lost(tally) == []
    assert tally.count()["ok"] > 20
    outcome = json.loads(run.out)
    assert (outcome["outcome"], outcome["left"]) == ("done", [])
    assert {"nginx.service", f"vllm@{MODEL}.service"} <= set(outcome["stopped"])
    removed = {found["name"] for found in outcome["removed"]}
    release = f"{STATE_DIRECTORY}/release"
    assert {"/etc/nginx/quench/tls.key", f"/etc/vllm/{MODEL}.env", "/srv/models", release} <= removed
    certificate = x509.load_pem_x509_certificate(Path(lab_data(leaver)["nginx_certificate"]).read_bytes())
    assert [found["serial"] for found in outcome["certificates"]] == [f"{certificate.serial_number:X}"]

    # What the host itself says.
    assert copies(leaver) == []
    assert leaver.root("find /srv/models /var/cache/vllm /var/lib/vllm -type f") == ""
    assert leaver.root("ss -ltnH 'sport = :443 or sport = :8000'") == ""
    for unit in ("nginx.service", f"vllm@{MODEL}.service"):
        assert leaver.root(f"systemctl is-active {unit}; systemctl is-enabled {unit}", check=False).split() == [
            "inactive", "disabled",
        ]  # fmt: skip
    for unit in ("ssh.service", "firewalld.service", "quench-forward.service", "logrotate.timer"):
        assert leaver.root(f"systemctl is-active {unit}") == "active"
    assert int(leaver.root("stat -c %s /var/log/nginx/access.json")) > 0
    assert "removed /etc/nginx/quench/tls.key" in leaver.root("journalctl --identifier quench --output cat")
    assert states(fleet) == ["MAINT", "MAINT"]

    again = decommission(fleet, tmp_path / "again")
    assert (again.code, json.loads(again.out)["outcome"]) == (0, "nothing to do")

    # Whoever wants it back provisions it, and says so to the balancers.
    inventory = write_inventory(tmp_path, fleet.changes)
    back = run_pyinfra(leaver, "-y", "--limit", "node3", inventory=inventory)
    assert back.code == 0, back.text[-3000:]
    set_ready(fleet)
    assert all_up(fleet)
    second = run_pyinfra(leaver, "-y", "--limit", "node3", "--json", inventory=inventory)
    assert second.code == 0, second.text[-3000:]
    assert (second.totals["success"], second.totals["hosts"] > 0) == (0, True)
    with running(fleet.load(key=key_of("demo"), streams=3, stream_words=50, plain=2)) as tally:
        tally.wait(lambda tally: tally.count()["ok"] > 20)
    assert lost(tally) == []
