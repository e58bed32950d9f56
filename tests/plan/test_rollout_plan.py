"""What a rollout makes of an inventory, before it asks any host."""

from __future__ import annotations

import getpass
import hashlib
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from quench import rollout_command, secrets
from quench.cli import main
from quench.plan import load_inventory, make_plan
from quench.problems import Refused
from quench.rollout import Options, Rollout
from quench.rollout_command import digest, fleet_record, models, prepare

EXAMPLE, DEPLOY = "inventories/example.py", "deploys/inference.py"
NODES = [f"node{number}.example.org" for number in (1, 2, 3, 4)]

# The example, with a balancer in front of it, and what a test changes.
_FLEET = """\
import runpy

_CHANGES = {changes!r}
inference = [
    (name, {{**data, **_CHANGES.get(name, {{}})}})
    for name, data in runpy.run_path("inventories/example.py")["inference"]
]
balancers = [("lb1.example.org", {{}})]
"""


@pytest.fixture
def fleet(example_secrets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("QUENCH_SECRETS", str(example_secrets))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def write(**changes: object) -> str:
        # pyinfra reads a path once.
        path = tmp_path / f"prod{len(list(tmp_path.glob('prod*.py')))}.py"
        path.write_text(_FLEET.format(changes=changes.get("changes", {})))
        return str(path)

    return write


def rollout(inventory: str, **options: object) -> Rollout:
    values: dict[str, object] = {
        "group_data": ["inventories/group_data"], "limit": [], "exclude": [], "prompts": None, "host_checks": False,
        "name": None, "say": print,
    }  # fmt: skip
    return prepare(inventory, [DEPLOY], Options(), **{**values, **options})  # type: ignore[arg-type]


def close(made: Rollout) -> Rollout:
    made._record.close()
    return made


def test_the_nodes_are_those_of_the_group_and_the_balancers_are_not(fleet) -> None:
    made = close(rollout(fleet()))
    assert list(made._plans) == NODES
    assert made._fleet.balancers == ["lb1.example.org"]
    assert made._plans["node3.example.org"].models == ("llama-3.3-70b", "qwen-coder")
    assert made._claim.who == getpass.getuser()


def test_nodes_can_be_chosen(fleet) -> None:
    assert list(close(rollout(fleet(), limit=["node2*", "lb1*"]))._plans) == ["node2.example.org"]
    assert list(close(rollout(fleet(), exclude=["node2*"]))._plans) == [NODES[0], *NODES[2:]]


def test_a_balancer_is_left_out_if_it_is_excluded_by_its_name_and_not_if_it_is_not_chosen(
    fleet, tmp_path: Path
) -> None:
    path = tmp_path / "two.py"
    path.write_text(Path(fleet()).read_text() + 'balancers += [("lb2.example.org", {})]\n')
    made = close(rollout(str(path), exclude=["lb2*", "node1*"]))
    assert (made._fleet.balancers, made._fleet.without) == (["lb1.example.org"], ["lb2.example.org"])
    assert list(made._plans) == NODES[1:]
    again = tmp_path / "again.py"  # pyinfra reads a path once
    again.write_text(path.read_text())
    assert close(rollout(str(again), limit=["node2*", "lb1*"]))._fleet.without == []


def test_a_rollout_without_any_balancer_is_refused(fleet) -> None:
    with pytest.raises(Refused, match="no balancer is left to be told; correct --exclude"):
        rollout(fleet(), exclude=["balancers"])


def test_the_hash_of_a_plan_is_the_same_for_the_same_settings_and_another_for_others(fleet) -> None:
    first, again = close(rollout(fleet()))._plans, close(rollout(fleet()))._plans
    assert [plan.hash for plan in again.values()] == [plan.hash for plan in first.values()]
    other = close(rollout(fleet(changes={NODES[1]: {"nginx_answer_seconds": 77}})))._plans
    assert [node for node in NODES if other[node].hash != first[node].hash] == [NODES[1]]


def test_the_hash_and_the_models_come_from_the_plan_that_is_rendered(fleet) -> None:
    plan = make_plan(load_inventory(EXAMPLE), [DEPLOY])[NODES[0]]
    assert len(digest(plan)) == 64
    assert models(plan) == ("llama-3.3-70b",)


def test_a_secret_that_changes_is_a_change_and_neither_hash_tells_it(
    fleet, example_secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "hf_first")
    changes = {NODES[1]: {"vllm_hf_token": "env:TOKEN"}}
    first = close(rollout(fleet(changes=changes), name="prod"))._plans
    # The record is written when a rollout begins.
    record = fleet_record("prod.py", "prod")
    record.begin("r1")
    record.close()
    again = close(rollout(fleet(changes=changes), name="prod"))._plans
    monkeypatch.setenv("TOKEN", "hf_second")
    secrets._resolve.cache_clear()
    other = close(rollout(fleet(changes=changes), name="prod"))._plans
    assert [plan.hash for plan in other.values()] == [plan.hash for plan in again.values()]
    assert [node for node in NODES if other[node].whole != again[node].whole] == [NODES[1]]
    # Salted: the same values under another salt.
    assert first[NODES[1]].secrets != again[NODES[1]].secrets
    assert hashlib.sha256(b"hf_second").hexdigest() not in other[NODES[1]].secrets


def test_two_inventories_of_one_name_are_two_fleets(fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "elsewhere" / "prod.py"
    path.parent.mkdir()
    path.write_text(Path(fleet()).read_text())
    record, other = fleet_record(str(path), None), fleet_record(str(tmp_path / "prod.py"), None)
    assert record.folder.parent == other.folder.parent
    assert record.folder != other.folder
    assert record.folder.name.startswith("prod-")
    record.close()
    other.close()
    monkeypatch.chdir(path.parent)
    same = fleet_record("prod.py", None)
    assert same.folder == record.folder
    same.close()


def test_an_inventory_without_balancers_is_refused_with_the_alternative(fleet) -> None:
    with pytest.raises(Refused, match=r"no host is in the group balancers; .* with pyinfra itself"):
        rollout(EXAMPLE)


def test_a_mistake_in_the_inventory_is_refused_before_any_host_is_asked(fleet) -> None:
    with pytest.raises(Refused, match="nginx_answer_seconds"):
        rollout(fleet(changes={NODES[1]: {"nginx_answer_seconds": "x"}}))


def test_no_node_is_refused(fleet) -> None:
    with pytest.raises(Refused, match="no host is chosen"):
        rollout(fleet(), limit=["lb1*"])


@pytest.mark.parametrize("gone", ["pytest", "testinfra", "pytest_timeout"])
def test_host_checks_are_refused_before_anything_where_they_cannot_run(
    fleet, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    found = rollout_command.find_spec
    monkeypatch.setattr(rollout_command, "find_spec", lambda name: None if name == gone else found(name))
    with pytest.raises(
        Refused, match=rf"this machine: host checks: {gone} cannot be imported here.*requirements/dev\.txt"
    ):
        rollout(fleet(), host_checks=True)
    close(rollout(fleet()))


def test_host_checks_run_with_the_python_of_the_command(fleet) -> None:
    assert close(rollout(fleet(), host_checks=True))._fleet._checks[:3] == [sys.executable, "-m", "pytest"]


def test_a_name_that_leads_elsewhere_is_refused(fleet) -> None:
    with pytest.raises(Refused, match="is no name for a file"):
        rollout(fleet(), name="../x")


def test_a_refusal_is_json_too(fleet) -> None:
    done = CliRunner().invoke(main, ["rollout", EXAMPLE, "--json"])
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["outcome"] == "refused"
    assert "no host is in the group balancers" in found["reasons"][0]


def test_balancers_that_do_not_answer_are_refused_in_one_line(fleet, tmp_path: Path) -> None:
    path = tmp_path / "gone.py"
    # Nothing listens at this port, and nothing is asked beyond this machine.
    text = _FLEET.format(changes={}).replace(
        '("lb1.example.org", {})',
        '("lb1.example.org", {"ssh_hostname": "127.0.0.1", "ssh_port": 1, "ssh_connect_retries": 0})',
    )
    path.write_text(text)
    done = CliRunner().invoke(main, ["rollout", str(path), "--group-data", "inventories/group_data"])
    assert done.exit_code == 1
    assert "lb1.example.org: lock: does not answer: " in done.stderr
    assert "Traceback" not in done.output
