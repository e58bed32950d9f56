"""Plans: which operations on which host, in which order. pyinfra's fake connector; nothing is connected to."""

from __future__ import annotations

from pathlib import Path

import pytest

from quench.files import CHECKOUT
from quench.flows import matrix
from quench.plan import Plan, load_inventory, make_plan
from quench.preflight import offline_problems
from quench.problems import Refused

EXAMPLE, DEPLOY = "inventories/example.py", "deploys/inference.py"


@pytest.fixture(scope="module")
def plan(example_secrets: Path) -> Plan:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(CHECKOUT)
        patch.setenv("QUENCH_SECRETS", str(example_secrets))
        return make_plan(load_inventory(EXAMPLE), [DEPLOY])


def position(operations: list[str], start: str) -> int:
    return next(number for number, name in enumerate(operations) if name.startswith(start))


def test_each_host_has_a_plan_without_problems(plan: Plan) -> None:
    assert sorted(plan) == [f"node{number}.example.org" for number in (1, 2, 3, 4)]
    assert offline_problems(plan, EXAMPLE) == []


def test_roles_come_in_the_order_of_the_deploy_file(plan: Plan) -> None:
    nvidia = ["nvidia_driver", "mig", "container_toolkit", "dcgm", "dcgm_exporter"]
    for host, host_plan in plan.items():
        roles = [name.partition(" | ")[0] for name in host_plan.operations]
        between = nvidia if host == "node4.example.org" else []
        assert [name for name in dict.fromkeys(roles) if name in nvidia] == between
        assert [name for name in dict.fromkeys(roles[1:]) if name not in nvidia] == [
            "base",
            "vllm",
            "acme",
            "nginx",
            "hardening",
            "logrotate",
            "firewall",
        ]


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


def test_gpus_are_ready_before_anything_uses_them(plan: Plan) -> None:
    operations = plan["node4.example.org"].operations
    for earlier, later in [
        ("nvidia_driver | Install the files of nvidia_driver-sources", "nvidia_driver | Install the NVIDIA driver"),
        ("nvidia_driver | Install the NVIDIA driver", "nvidia_driver | Rebuild the initramfs"),
        ("nvidia_driver | Install the NVIDIA driver", "nvidia_driver | Reboot"),
        ("nvidia_driver | Rebuild the initramfs", "nvidia_driver | Reboot"),
        ("nvidia_driver | Reboot", "nvidia_driver | Load the kernel modules"),
        ("nvidia_driver | Load the kernel modules", "nvidia_driver | Keep nvidia-fabricmanager.service"),
        ("nvidia_driver | Keep nvidia-fabricmanager.service", "nvidia_driver | Verify"),
        ("nvidia_driver | Verify", "mig | Apply the MIG layout"),
        ("mig | Apply the MIG layout", "container_toolkit | Describe the GPUs"),
        ("dcgm | Keep nvidia-dcgm.service", "dcgm_exporter | Keep nvidia-dcgm-exporter.service"),
        ("mig | Apply the MIG layout", "vllm | Keep vllm@"),
    ]:
        assert position(operations, earlier) < position(operations, later), (earlier, later)


def test_a_host_without_gpus_gets_nothing_of_nvidia(plan: Plan) -> None:
    for host in ("node1.example.org", "node2.example.org", "node3.example.org"):
        assert [file.dest for file in plan[host].files if "nvidia" in file.dest or "dcgm" in file.dest] == []


def test_a_host_with_gpus_is_asked_what_it_has_before_anything_changes(plan: Plan) -> None:
    asked = {host: [question.command for question in host_plan.questions] for host, host_plan in plan.items()}
    assert any("/sys/bus/pci/devices" in command for command in asked["node4.example.org"])
    assert not any("/sys/bus/pci/devices" in command for command in asked["node1.example.org"])


def test_hosts_with_different_models_are_planned_together(plan: Plan) -> None:
    units = {host: [name for name in host_plan.operations if "Keep vllm@" in name] for host, host_plan in plan.items()}
    assert len(units["node1.example.org"]) == 1
    assert len(units["node3.example.org"]) == 2


def test_a_model_without_a_source_must_be_on_the_host(plan: Plan) -> None:
    asked = {
        host: [question.command for question in host_plan.questions if "/srv/models" in question.command]
        for host, host_plan in plan.items()
    }
    # What it fetches is asked for as well: a revision that is there already stays as it is.
    assert [command.split()[0] for command in asked["node1.example.org"]] == ["sha256sum"]
    assert asked["node3.example.org"] == [
        "test -e /srv/models/llama-3.3-70b/2026-10-01 || echo missing",
        "test -e /srv/models/qwen-coder/7 || echo missing",
    ]


def test_what_is_built_and_fetched_is_never_changed_under_its_name(plan: Plan) -> None:
    questions = {question.command: question for question in plan["node1.example.org"].questions}
    built = next(question for command, question in questions.items() if "/.complete" in command)
    fetched = next(question for command, question in questions.items() if "SHA256SUMS" in command)
    for question, key in ((built, "vllm_version"), (fetched, "vllm_models.llama-3.3-70b.revision")):
        assert list(question.problems([])) == []
        (problem,) = question.problems(["another"])
        assert problem.key == key and "name" in problem.remedy
    assert list(fetched.problems(["0" * 64])) == []


def test_the_firewall_comes_last_and_knows_the_flows_of_all_roles(plan: Plan) -> None:
    roles = {flow.role for flow in plan["node4.example.org"].flows}
    assert roles == {"base", "nvidia_driver", "container_toolkit", "dcgm_exporter", "vllm", "nginx", "firewall"}
    for host_plan in plan.values():
        first, *others = host_plan.operations
        assert first.startswith("firewall | Let through what this run needs")
        last = [name for name in others if not name.startswith("firewall | ")][-1]
        assert position(others, "firewall | ") > others.index(last)
        assert host_plan.operations[-1] == "firewall | Prove that the new files of firewall let the controller in"


def test_flows_of_the_inventory_are_in_the_matrix_as_those_of_the_site() -> None:
    flow = {"direction": "in", "zones": ["app"], "port": 5432, "why": "queries of the applications"}
    inventory = load_inventory(EXAMPLE, override_data={"firewall_flows": [flow]})
    plan = make_plan(inventory, ["deploys/hardening.py"], limit=["node1.example.org"])
    assert offline_problems(plan, EXAMPLE) == []
    (row,) = [row for row in matrix(plan).rows if row.role == "site"]
    assert (row.source, row.target, row.service, row.what) == ("app", "inference", "5432/tcp", flow["why"])


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
    of_files = {"nginx_certificate", "nginx_private_key"}
    assert {problem.key for problem in problems if problem.host == "node1.example.org"} == of_files
    # nginx could not say more on a host whose role acme is left out.
    assert {problem.key for problem in problems if problem.host == "node3.example.org"} == {"acme_directory_ca"}
    assert {problem.key for problem in problems} == of_files | {
        "acme_directory_ca",
        "container_toolkit_repository_key",
        "dcgm_exporter_certificate",
        "dcgm_exporter_client_ca",
        "dcgm_exporter_private_key",
        "nvidia_driver_repository_key",
    }


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_a_site_has_nodes_and_balancers_and_each_gets_its_roles(
    size: str, example_secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUENCH_SECRETS", str(example_secrets))
    inventory = f"inventories/{size}.py"
    site = make_plan(load_inventory(inventory), ["deploys/site.py"])
    assert offline_problems(site, inventory) == []
    assert len(site) == {"small": 3, "medium": 6, "large": 10}[size]
    for group, deploy in (("inference", DEPLOY), ("balancers", "deploys/balancer.py")):
        alone = make_plan(load_inventory(inventory), [deploy], limit=[group])
        for host, host_plan in alone.items():
            assert site[host].files == host_plan.files
            # pyinfra puts the name of the included file before what it does.
            assert [name.replace(f"{deploy} | ", "") for name in site[host].operations] == host_plan.operations


def test_a_large_site_has_a_pool_for_each_model(example_secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUENCH_SECRETS", str(example_secrets))
    site = make_plan(load_inventory("inventories/large.py"), ["deploys/site.py"])
    config = next(file.content for file in site["lb1.example.org"].files if file.dest == "/etc/haproxy/haproxy.cfg")
    pools = {part.split()[0]: part for part in config.split("\nbackend ") if part.startswith("pool")}
    assert [part.count("\n    server ") for part in pools.values()] == [2, 4, 2]
    assert "node4.example.org" in next(line for line in config.splitlines() if line.endswith(" backup"))
