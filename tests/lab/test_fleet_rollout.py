"""Changes to the nodes of a fleet under load, one after the other: none of the requests is lost, and a release that is
broken does not get past the first node. The engine is the stand-in; all else is real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleets import Fleet, key_of, lost, servers, wait
from support import CHECKOUT, MODEL, Run, environment, lab_data, write_inventory

from quench.lab import fleet as labs
from quench.rollout_command import state_folder
from tests.load.load import running

# Under which the rollouts of this test are remembered.
NAME = "test-fleet"
WORDS = 250  # 5 s of the stand-in


@pytest.fixture(scope="module", autouse=True)
def last_of_the_fleet(fleet: Fleet) -> Iterator[None]:
    """Nobody needs the fleet after this, and its hosts would be in the way of those who need many."""
    yield
    if not os.environ.get("QUENCH_KEEP_LABS"):
        labs.down(fleet.nodes[0].lab.name)


@pytest.fixture(autouse=True)
def all_nodes_are_up(fleet: Fleet) -> Iterator[None]:
    assert all_up(fleet)
    yield
    for path in state_folder().glob(f"{NAME}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert all_up(fleet)


def all_up(fleet: Fleet) -> bool:
    return wait(lambda: all(row["status"] == "UP" for lb in fleet.balancers for row in servers(lb).values()), 40)


def command(fleet: Fleet, folder: Path, *options: str, **changes: Any) -> list[str]:
    """`quench rollout` of an inventory in which all nodes have some settings changed."""
    folder.mkdir(parents=True, exist_ok=True)
    inventory = write_inventory(folder, {**fleet.changes, **{node.name: changes for node in fleet.nodes}})
    return [
        str(Path(sys.executable).with_name("quench")), "rollout", inventory, "--group-data", "inventories/group_data",
        "--name", NAME, "--drain-seconds", "60", "--ready-seconds", "60", "--json", *options,
    ]  # fmt: skip


def rollout(fleet: Fleet, folder: Path, *options: str, **changes: Any) -> Run:
    done = subprocess.run(
        command(fleet, folder, *options, **changes), cwd=CHECKOUT, env=environment(fleet.nodes[0]), capture_output=True,
        text=True, stdin=subprocess.DEVNULL, timeout=500, check=False,
    )  # fmt: skip
    return Run(done.returncode, done.stdout, done.stderr)


def drain_seconds(fleet: Fleet) -> list[str]:
    """What the nodes have of the setting that the tests change."""
    found = [node.root(f"grep -o 'shutdown-timeout: .*' /etc/vllm/{MODEL}.yaml") for node in fleet.nodes]
    return [line.rpartition(" ")[2] for line in found]


def test_a_rollout_under_load_loses_no_request(fleet: Fleet, tmp_path: Path) -> None:
    address = fleet.balancers[0].lab.shared_address
    load = fleet.load(address=address, key=key_of("demo"), streams=6, stream_words=WORDS, plain=2)
    with running(load) as tally:
        tally.wait(lambda tally: tally.flowing >= 6)
        run = rollout(fleet, tmp_path, vllm_drain_seconds=31)
    assert run.code == 0, run.text[-3000:]
    assert lost(tally) == []
    assert tally.count()["ok"] > 50
    assert drain_seconds(fleet) == ["31"] * 3
    outcome = json.loads(run.out)
    assert {name: node["outcome"] for name, node in outcome["nodes"].items()} == dict.fromkeys(
        ("node1", "node2", "node3"), "done"
    )


def test_an_answer_that_is_not_the_expected_one_halts_it_and_the_former_release_serves(
    fleet: Fleet, tmp_path: Path
) -> None:
    before = drain_seconds(fleet)
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text(f"- {{model: {MODEL}, prompt: who are you, expect: I am a model}}\n")
    with running(fleet.load(key=key_of("demo"), streams=3, stream_words=WORDS, plain=2)) as tally:
        run = rollout(fleet, tmp_path, "--prompts", str(prompts), vllm_drain_seconds=32)
    assert run.code == 1
    assert "node1: verify: " in run.err and "has its former release back, and answers" in run.err
    assert "Traceback" not in run.text
    assert lost(tally) == []
    assert drain_seconds(fleet) == before


def test_an_engine_that_does_not_start_halts_it_and_the_former_release_serves(fleet: Fleet, tmp_path: Path) -> None:
    before = drain_seconds(fleet)
    node = fleet.nodes[0]
    # The new release's engine cannot take its port.
    models = {MODEL: {**lab_data(node)["vllm_models"][MODEL], "port": 8022}}
    node.root("systemd-run --unit=squatter python3 -m http.server --bind 127.0.0.1 8022")
    try:
        run = rollout(fleet, tmp_path, vllm_models=models, vllm_start_seconds=15)
    finally:
        node.root("systemctl stop squatter.service")
    assert run.code == 1, run.text[-2000:]
    assert "node1: change: " in run.err and "has its former release back, and answers" in run.err
    assert "Traceback" not in run.text
    assert drain_seconds(fleet) == before


def test_a_controller_that_dies_in_the_middle_goes_on_where_it_stopped(fleet: Fleet, tmp_path: Path) -> None:
    words = command(fleet, tmp_path, vllm_drain_seconds=33)
    with running(fleet.load(key=key_of("demo"), streams=3, stream_words=WORDS, plain=2)) as tally:
        process = subprocess.Popen(
            words, cwd=CHECKOUT, env=environment(fleet.nodes[0]), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "node2" in line and "change" in line:
                break
        time.sleep(2)
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
        process.stderr.close()
        process.wait()
        assert process.returncode == -signal.SIGKILL
        again = rollout(fleet, tmp_path, vllm_drain_seconds=33)
    assert again.code == 0, again.text[-3000:]
    assert lost(tally) == []
    assert drain_seconds(fleet) == ["33"] * 3
