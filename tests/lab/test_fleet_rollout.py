"""Changes to the nodes of a fleet under load, one after the other: none of the requests is lost, and a release that is
broken does not get past the first node. The engine is the stand-in; all else is real."""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from fleets import NAME, WORDS, Fleet, forgotten, key_of, lost, servers, wait
from support import BALANCER_DEPLOY, MODEL, Run, background, lab_data, run_pyinfra, run_quench, write_inventory

from quench import ca
from quench.lab import fleet as labs
from quench.rollout_command import state_folder
from tests.load.load import running


@pytest.fixture(scope="module", autouse=True)
def last_of_the_fleet(fleet: Fleet) -> Iterator[None]:
    """Nobody needs the fleet after this, and its hosts would be in the way of those who need many."""
    yield
    if not os.environ.get("QUENCH_KEEP_LABS"):
        labs.down(fleet.nodes[0].lab.name)


@pytest.fixture(autouse=True)
def all_nodes_are_up(fleet: Fleet) -> Iterator[None]:
    with forgotten(fleet):
        yield


def changed(fleet: Fleet, folder: Path, **changes: Any) -> str:
    """An inventory in which all nodes have some settings changed."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_inventory(folder, {**fleet.changes, **{node.name: changes for node in fleet.nodes}})


def command(inventory: str, *options: str) -> list[str]:
    return [
        "rollout", inventory, "--group-data", "inventories/group_data", "--name", NAME, "--drain-seconds", "60",
        "--ready-seconds", "60", "--json", *options,
    ]  # fmt: skip


def rollout(fleet: Fleet, inventory: str, *options: str) -> Run:
    return run_quench(fleet.nodes[0], *command(inventory, *options))


def drain_seconds(fleet: Fleet) -> list[str]:
    """What the nodes have of the setting that the tests change."""
    found = [node.root(f"grep -o 'shutdown-timeout: .*' /etc/vllm/{MODEL}.yaml") for node in fleet.nodes]
    return [line.rpartition(" ")[2] for line in found]


def halted(run: Run, step: str, outcome: str) -> None:
    """A rollout that has stopped at the first node says so in one line, with what became of it."""
    assert run.code == 1, run.text[-3000:]
    lines = [line for line in run.err.splitlines() if f"node1: {step}: " in line]
    assert len(lines) == 1 and outcome in lines[0], run.err
    assert "Traceback" not in run.text


def test_a_rollout_under_load_loses_no_request(fleet: Fleet, tmp_path: Path) -> None:
    address = fleet.balancers[0].lab.shared_address
    load = fleet.load(address=address, key=key_of("demo"), streams=6, stream_words=WORDS, plain=2)
    with running(load) as tally:
        tally.wait(lambda tally: tally.flowing >= 6)
        run = rollout(fleet, changed(fleet, tmp_path, vllm_drain_seconds=31))
    assert run.code == 0, run.text[-3000:]
    assert lost(tally) == []
    assert tally.count()["ok"] > 50
    assert drain_seconds(fleet) == ["31"] * 3
    outcome = json.loads(run.out)
    assert {name: node["outcome"] for name, node in outcome["nodes"].items()} == dict.fromkeys(
        ("node1", "node2", "node3"), "done"
    )


def test_a_node_that_passes_the_host_checks_comes_back_and_its_requests_with_it_bit_by_bit(
    fleet: Fleet, tmp_path: Path
) -> None:
    run = rollout(fleet, changed(fleet, tmp_path, vllm_drain_seconds=36), "--limit", "node1", "--host-checks")
    # HAProxy's slowstart, of 30 s.
    shares = [servers(balancer)["node1"]["throttle"] for balancer in fleet.balancers]
    assert run.code == 0, run.text[-3000:]
    (log,) = (state_folder() / f"{NAME}.runs").glob("*-host-checks-node1.log")
    # pytest ends with 0 as well if all is skipped.
    assert " passed" in log.read_text().splitlines()[-1]
    assert all(share and 0 < int(share) < 100 for share in shares), shares


def test_a_rollout_right_after_a_reload_of_the_balancers_cuts_no_answer(fleet: Fleet, tmp_path: Path) -> None:
    # Longer than the drain takes: the answers that the former HAProxy has in flight are those that could be cut.
    with running(fleet.load(key=key_of("demo"), streams=6, stream_words=1000, plain=2)) as tally:
        tally.wait(lambda tally: tally.flowing >= 6)
        for balancer in fleet.balancers:
            balancer.root("systemctl reload haproxy.service")
        inventory = changed(fleet, tmp_path, vllm_drain_seconds=35)
        run = rollout(fleet, inventory, "--limit", "node1", "--drain-seconds", "150")
    assert run.code == 0, run.text[-3000:]
    assert lost(tally) == []
    assert "waited for the HAProxy from before a reload of lb1" in run.err


def test_an_answer_that_is_not_the_expected_one_halts_it_and_the_former_release_serves(
    fleet: Fleet, tmp_path: Path
) -> None:
    before = drain_seconds(fleet)
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text(f"- {{model: {MODEL}, prompt: who are you, expect: I am a model}}\n")
    with running(fleet.load(key=key_of("demo"), streams=3, stream_words=WORDS, plain=2)) as tally:
        run = rollout(fleet, changed(fleet, tmp_path, vllm_drain_seconds=32), "--prompts", str(prompts))
    halted(run, "verify", "has its former release back, and answers")
    assert lost(tally) == []
    assert drain_seconds(fleet) == before


def test_an_engine_that_does_not_start_halts_it_and_the_former_release_serves(fleet: Fleet, tmp_path: Path) -> None:
    before = drain_seconds(fleet)
    node = fleet.nodes[0]
    # The new release's engine cannot take its port.
    models = {MODEL: {**lab_data(node)["vllm_models"][MODEL], "port": 8022}}
    node.root("systemd-run --unit=squatter python3 -m http.server --bind 127.0.0.1 8022")
    try:
        run = rollout(fleet, changed(fleet, tmp_path, vllm_models=models, vllm_start_seconds=15))
    finally:
        node.root("systemctl stop squatter.service")
    halted(run, "change", "has its former release back, and answers")
    assert drain_seconds(fleet) == before


def test_a_release_with_another_model_halts_it_and_the_former_release_serves(fleet: Fleet, tmp_path: Path) -> None:
    before = drain_seconds(fleet)
    models = {"another-model": lab_data(fleet.nodes[0])["vllm_models"][MODEL]}
    with running(fleet.load(key=key_of("demo"), streams=3, stream_words=WORDS, plain=2)) as tally:
        run = rollout(fleet, changed(fleet, tmp_path, vllm_models=models), "--ready-seconds", "15")
    halted(run, "verify", "has its former release back")
    assert lost(tally) == []
    assert drain_seconds(fleet) == before
    assert fleet.nodes[0].root("systemctl is-active vllm@another-model.service; true") == "inactive"


def test_a_port_that_is_closed_halts_it_and_the_former_release_serves(fleet: Fleet, tmp_path: Path) -> None:
    # The engine is up, and the new release's firewall lets no balancer in.
    with running(fleet.load(key=key_of("demo"), streams=3, stream_words=WORDS, plain=2)) as tally:
        run = rollout(fleet, changed(fleet, tmp_path, nginx_client_zones=["management"]), "--ready-seconds", "15")
    halted(run, "verify", "has its former release back, and answers")
    assert lost(tally) == []


def test_a_node_that_does_not_come_back_halts_it_and_is_the_first_of_the_next(fleet: Fleet, tmp_path: Path) -> None:
    node, two = fleet.nodes[0], ("--limit", "node1", "--limit", "node2")
    with running(fleet.load(key=key_of("demo"), streams=3, stream_words=WORDS, plain=2)) as tally:
        with background(node, *command(changed(fleet, tmp_path, vllm_drain_seconds=34), *two)) as begun:
            begun.wait_for("node1", "keep")
            # In the midst of the change: its files are there, and its engine is starting.
            assert wait(lambda: drain_seconds(fleet)[0] == "34", 20)
            labs.switch_off(node.lab, node.name)
            try:
                run = begun.end()
            finally:
                labs.switch_on(node.lab, node.name)
        halted(run, "change", "node1 stays drained; mend it, and run the same command")
        again = rollout(fleet, changed(fleet, tmp_path, vllm_drain_seconds=34), *two)
    assert again.code == 0, again.text[-3000:]
    assert lost(tally) == []
    assert drain_seconds(fleet)[:2] == ["34"] * 2


def test_a_controller_that_dies_in_the_middle_goes_on_where_it_stopped(fleet: Fleet, tmp_path: Path) -> None:
    with running(fleet.load(key=key_of("demo"), streams=3, stream_words=WORDS, plain=2)) as tally:
        with background(fleet.nodes[0], *command(changed(fleet, tmp_path, vllm_drain_seconds=33))) as begun:
            begun.wait_for("node2", "keep")
            assert wait(lambda: drain_seconds(fleet)[1] == "33", 20)
            children = subprocess.run(
                ["pgrep", "-P", str(begun.process.pid)], capture_output=True, text=True, check=True
            ).stdout.split()
            # The pyinfra that it has started, which is in the midst of node2, ends with it.
            begun.process.kill()
            assert begun.end().code == -signal.SIGKILL
            assert wait(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 10)
        again = rollout(fleet, changed(fleet, tmp_path, vllm_drain_seconds=33))
    assert again.code == 0, again.text[-3000:]
    assert lost(tally) == []
    assert drain_seconds(fleet) == ["33"] * 3


def certificates(fleet: Fleet, authority: Path, trusted: Path) -> dict[str, dict[str, Any]]:
    """What every host has in the mesh: a certificate of this authority, and those whom it trusts."""
    names = {one.name: f"{one.name}.{one.lab.name}.test" for one in (*fleet.balancers, *fleet.nodes)}
    found: dict[str, dict[str, Any]] = {}
    for node in fleet.nodes:
        found[node.name] = {
            "nginx_server_name": names[node.name],
            "nginx_certificate": str(authority / f"{names[node.name]}.crt"),
            "nginx_private_key": f"file:{authority / names[node.name]}.key",
            "nginx_balancer_ca": str(trusted),
        }
    for one in fleet.balancers:
        found[one.name] = {
            **fleet.changes[one.name],
            "haproxy_node_certificate": str(authority / f"{names[one.name]}.crt"),
            "haproxy_node_private_key": f"file:{authority / names[one.name]}.key",
            "haproxy_node_ca": str(trusted),
        }
    return found


def handshake(fleet: Fleet, authority: Path) -> int:
    """What a node says to somebody who has the first balancer's certificate of this authority."""
    node, balancer = fleet.nodes[0], fleet.balancers[0]
    name = authority / f"{balancer.name}.{balancer.lab.name}.test"
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(f"{name}.crt", f"{name}.key")
    connection = http.client.HTTPSConnection(node.address, context=context, timeout=10)
    connection.request("GET", "/v1/models", headers={"X-Client-Id": "demo", "X-Model": MODEL})
    try:
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.timeout(1200)  # three rounds, each of which waits for what the balancers had in flight before
def test_the_mesh_gets_another_authority_under_load(fleet: Fleet, tmp_path: Path) -> None:
    """Trust both, then change the certificates, then trust the new one alone. Last, since it leaves the fleet so."""
    lab = fleet.nodes[0].lab
    former, new, both = lab.folder / "ca", tmp_path / "ca", tmp_path / "both.crt"
    # Of the same name: it is the key that tells them apart.
    name = x509.load_pem_x509_certificate((former / "ca.crt").read_bytes()).subject
    ca.create(new, str(name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value))
    for node in fleet.nodes:
        ca.issue(former, [f"{node.name}.{lab.name}.test"])
        ca.issue(new, [f"{node.name}.{lab.name}.test"])
    for one in fleet.balancers:
        ca.issue(new, [f"{one.name}.{lab.name}.test"], client=True)
    both.write_text((former / "ca.crt").read_text() + (new / "ca.crt").read_text())
    load = fleet.load(address=lab.shared_address, key=key_of("demo"), streams=3, stream_words=WORDS, plain=2)
    with running(load) as tally:
        for number, (authority, trusted) in enumerate([(former, both), (new, both), (new, new / "ca.crt")]):
            folder = tmp_path / str(number)
            folder.mkdir()
            inventory = write_inventory(folder, certificates(fleet, authority, trusted))
            options = ("-y", "--limit", "balancers", "--serial")
            run = run_pyinfra(fleet.nodes[0], *options, inventory=inventory, deploy=BALANCER_DEPLOY)
            assert run.code == 0, run.text[-3000:]
            run = rollout(fleet, inventory, "--batch", "2")
            assert run.code == 0, run.text[-3000:]
    assert lost(tally) == []
    assert tally.count()["ok"] > 50
    assert (handshake(fleet, new), handshake(fleet, former)) == (404, 400)
