"""What deploys/keys.py would do: the keyring, where there is one, and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from quench.plan import HostPlan, Plan, Question, load_inventory, make_plan
from quench.preflight import offline_problems

KEYS = "deploys/keys.py"
MAPS = [f"/etc/haproxy/quench/{name}.map" for name in ("keys", "lists", "pools")]


def planned(inventory: str, deploy: str = KEYS) -> Plan:
    return make_plan(load_inventory(inventory, group_data=["inventories/group_data"]), [deploy])


# The first test has no secrets at all: whoever keeps the keyring needs none.
def test_balancers_get_their_maps_and_their_nodes_nothing() -> None:
    plan = planned("inventories/medium.py")
    assert offline_problems(plan, "inventories/medium.py") == []
    for host, found in plan.items():
        assert [file.dest for file in found.files] == (MAPS if host.startswith("lb") else [])
        assert found.operations == (
            [
                "haproxy | Install some files of haproxy",
                "haproxy | Bring the keyring into the running HAProxy",
            ]
            if host.startswith("lb")
            else []
        )


def test_a_node_without_balancers_gets_its_keyring() -> None:
    plan = planned("inventories/example.py")
    assert offline_problems(plan, "inventories/example.py") == []
    for found in plan.values():
        assert [file.dest for file in found.files] == ["/etc/nginx/quench/keyring.json"]
        assert found.operations == ["nginx | Install some files of nginx"]


@pytest.mark.parametrize(("name", "deploy"), [("example", "inference"), ("medium", "balancer")])
def test_the_files_are_those_of_a_whole_run(
    name: str, deploy: str, example_secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUENCH_SECRETS", str(example_secrets))
    inventory = f"inventories/{name}.py"
    whole = planned(inventory, f"deploys/{deploy}.py")
    some = [(host, file) for host, found in planned(inventory).items() for file in found.files]
    assert some
    assert [host for host, file in some if file not in whole[host].files] == []


def changed(folder: Path, base: str, group: str, **data: object) -> Plan:
    path = folder / f"changed{len(list(folder.iterdir()))}.py"
    path.write_text(
        f"import runpy\n_BASE = runpy.run_path('inventories/{base}.py')\ninference = _BASE['inference']\n"
        f"balancers = _BASE.get('balancers', [])\n"
        f"{group} = [(name, {{**data, **{data!r}}}) for name, data in {group}]\n"
    )
    return planned(str(path))


def client(**more: object) -> dict[str, object]:
    return {"keys": [{"sha256": hashlib.sha256(b"k").hexdigest(), "expires": "2099-01-01"}], **more}


@pytest.mark.parametrize(
    ("base", "group", "role"), [("medium", "balancers", "haproxy"), ("example", "inference", "nginx")]
)
def test_a_model_that_nobody_serves_is_a_problem_here_too(tmp_path: Path, base: str, group: str, role: str) -> None:
    plan = changed(tmp_path, base, group, **{f"{role}_clients": {"a": client(models=["nothing"])}})
    problems = offline_problems(plan, "x")
    assert {problem.key for problem in problems} == {f"{role}_clients.a.models"}
    assert all("serves 'nothing'" in problem.what for problem in problems)


def answered(found: HostPlan, lines: list[str]) -> list[str]:
    (question,) = found.questions
    assert isinstance(question, Question)
    return [str(problem) for problem in question.problems(lines)]


def test_a_pool_that_the_balancer_does_not_have_yet_stops_the_run() -> None:
    found = planned("inventories/medium.py")["lb1.example.org"]
    assert answered(found, ["counts", "pool_llama-3.3-70b"]) == []
    (line,) = answered(found, [])
    assert line == (
        "lb1.example.org: haproxy_clients: HAProxy has no pool for the model llama-3.3-70b yet; "
        "run deploys/balancer.py for this host first"
    )


def test_a_limit_that_the_node_does_not_have_yet_stops_the_run(tmp_path: Path) -> None:
    limits = {"requests_per_minute": 90, "burst": 5, "concurrent": 3}
    plan = changed(tmp_path, "example", "inference", nginx_clients={"a": client(**limits)})
    found = plan["node1.example.org"]
    assert answered(found, ["rate_90_5", "concurrent_3", "rate_1_1"]) == []
    lines = answered(found, ["concurrent_3"])
    assert len(lines) == 1
    assert "nginx has no limit of requests_per_minute = 90, burst = 5 yet; run deploys/inference.py" in lines[0]
