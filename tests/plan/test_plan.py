"""Plans: which operations on which host, in which order. pyinfra's fake connector; nothing is connected to."""

from __future__ import annotations

from pathlib import Path

import pytest

from quench.plan import Plan, load_inventory, make_plan
from quench.preflight import offline_problems
from quench.problems import Refused

EXAMPLE, DEPLOY = "inventories/example.py", "deploys/inference.py"


@pytest.fixture
def plan(example_secrets: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv("QUENCH_SECRETS", str(example_secrets))
    return make_plan(load_inventory(EXAMPLE), [DEPLOY])


def position(operations: list[str], start: str) -> int:
    return next(number for number, name in enumerate(operations) if name.startswith(start))


def test_each_host_has_a_plan_without_problems(plan: Plan) -> None:
    assert sorted(plan) == ["node1.example.org", "node2.example.org", "node3.example.org"]
    assert offline_problems(plan, EXAMPLE) == []


def test_roles_come_in_the_order_of_the_deploy_file(plan: Plan) -> None:
    for host_plan in plan.values():
        roles = [name.partition(" | ")[0] for name in host_plan.operations]
        assert list(dict.fromkeys(roles)) == ["base", "vllm", "nginx", "logrotate"]


def test_nothing_is_started_before_what_it_needs_is_in_place(plan: Plan) -> None:
    operations = plan["node3.example.org"].operations
    for earlier, later in [
        ("base | Install the files of base-sources", "base | Install chrony"),
        ("vllm | Have the user vllm", "vllm | Install the files of vllm"),
        ("vllm | Build /opt/vllm", "vllm | Install the files of vllm"),
        ("vllm | Install the files of vllm", "vllm | Keep vllm@llama"),
        ("vllm | Keep vllm@llama", "nginx | Keep nginx.service"),
        ("nginx | Install the files of nginx", "nginx | Keep nginx.service"),
    ]:
        assert position(operations, earlier) < position(operations, later)


def test_hosts_with_different_models_are_planned_together(plan: Plan) -> None:
    units = {host: [name for name in host_plan.operations if "Keep vllm@" in name] for host, host_plan in plan.items()}
    assert len(units["node1.example.org"]) == 1
    assert len(units["node3.example.org"]) == 2


def test_a_model_without_a_source_must_be_on_the_host(plan: Plan) -> None:
    assert [path.path for path in plan["node1.example.org"].paths] == []
    assert [path.path for path in plan["node3.example.org"].paths] == [
        "/srv/models/llama-3.3-70b/2026-10-01",
        "/srv/models/qwen-coder/7",
    ]


def test_every_file_has_one_owner(plan: Plan) -> None:
    """Two roles, or one role twice, that manage one file would change it to and fro."""
    for host_plan in plan.values():
        destinations = [file.dest for file in host_plan.files]
        assert len(destinations) == len(set(destinations))


def test_a_limit_plans_only_those_hosts(example_secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUENCH_SECRETS", str(example_secrets))
    plan = make_plan(load_inventory(EXAMPLE), [DEPLOY], limit=["node2.*"])
    assert list(plan) == ["node2.example.org"]


def test_a_limit_that_matches_no_host_is_a_problem() -> None:
    plan = make_plan(load_inventory(EXAMPLE), [DEPLOY], limit=["nosuchhost"])
    (problem,) = offline_problems(plan, EXAMPLE)
    assert "no host is chosen" in str(problem)


def test_an_inventory_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refused, match="no such file"):
        load_inventory("inventories/prd.py")


def test_an_inventory_that_is_not_filled_in_is_a_problem() -> None:
    plan = make_plan(load_inventory("inventories/prod.py"), [DEPLOY])
    (problem,) = offline_problems(plan, "inventories/prod.py")
    assert problem.host == "inventories/prod.py"


def test_the_problems_of_all_roles_and_hosts_come_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUENCH_SECRETS", str(tmp_path))
    plan = make_plan(load_inventory(EXAMPLE), [DEPLOY])
    problems = offline_problems(plan, EXAMPLE)
    assert {problem.host for problem in problems} == set(plan)
    assert {problem.key for problem in problems} == {"nginx_certificate", "nginx_private_key"}
