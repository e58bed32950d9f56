import pprint

import pytest

from quench.plan import load_inventory, make_plan

DEPLOY = """
from quench import Certificate, Gpus, Slices
from roles.nginx import nginx
from roles.vllm import vllm
nginx(vllm(Gpus(), Slices()), Certificate())
"""


@pytest.fixture
def host_plan(tmp_path):
    """The plan of one host with this data, for engines behind nginx."""

    def plan(data):
        (tmp_path / "deploy.py").write_text(DEPLOY)
        (tmp_path / "inventory.py").write_text(f"import datetime\nhosts = [('node1', {pprint.pformat(data)})]\n")
        return make_plan(load_inventory(str(tmp_path / "inventory.py")), [str(tmp_path / "deploy.py")])["node1"]

    return plan


@pytest.fixture
def data(nginx_data, vllm_data):
    return nginx_data | vllm_data


def test_good_data_makes_operations_and_no_problem(host_plan, data):
    found = host_plan(data)
    assert found.problems == []
    assert "nginx | Install the files of nginx" in found.operations


def test_problems_of_all_roles_come_together(host_plan, data):
    found = host_plan(data | {"nginx_port": 0, "vllm_device": "tpu", "ngnix_x": 1})
    assert {problem.key for problem in found.problems} == {"nginx_port", "vllm_device", "ngnix_x"}


def test_a_role_whose_engine_is_missing_is_left_out_and_adds_no_problem(host_plan, data):
    found = host_plan(data | {"vllm_device": "tpu"})
    assert [problem.key for problem in found.problems] == ["vllm_device"]
    assert found.files == []


@pytest.mark.parametrize("key", ["nginx_private_key", "vllm_hf_token"])
def test_a_secret_without_a_value_is_a_problem_and_no_traceback(host_plan, data, key):
    found = host_plan(data | {key: "env:QUENCH_TEST_ABSENT"})
    assert [problem.key for problem in found.problems] == [key]
    assert "QUENCH_TEST_ABSENT is not set" in found.problems[0].what


def test_a_missing_secret_hides_no_other_problem_of_its_role(host_plan, data):
    found = host_plan(data | {"nginx_private_key": "env:QUENCH_TEST_ABSENT", "nginx_server_name": "other.example.org"})
    assert {problem.key for problem in found.problems} == {"nginx_private_key", "nginx_certificate"}


def test_a_client_that_may_use_a_model_which_nobody_serves_is_a_problem(host_plan, data, make_client):
    found = host_plan(data | {"nginx_clients": {"a": make_client("k", models=["llama", "mistral"])}})
    assert [problem.key for problem in found.problems] == ["nginx_clients.a.models"]
    assert "'mistral'" in found.problems[0].what
    assert "llama" in found.problems[0].remedy
