import pytest
from pyinfra.api.exceptions import PyinfraError

from quench import Problem, Refused
from quench.problems import report

PORT = Problem("node1", "nginx_port", "is 0", "choose one from 1 to 65535")
NAME = Problem("node1", "nginx_name", "is not set", "set it")
OTHER = Problem("node0", "vllm_version", "is not set", "set it")


def test_a_problem_is_one_line_with_host_key_what_and_remedy():
    assert str(PORT) == "node1: nginx_port: is 0; choose one from 1 to 65535"


def test_a_report_sorts_by_host_and_key_whatever_order_problems_came_in():
    lines = report([PORT, NAME, OTHER]).splitlines()[1:]
    assert [line.split(": ")[:2] for line in lines] == [
        ["  node0", "vllm_version"],
        ["  node1", "nginx_name"],
        ["  node1", "nginx_port"],
    ]


def test_a_problem_found_twice_is_reported_once():
    assert report([PORT, PORT]).count("nginx_port") == 1


@pytest.mark.parametrize(("found", "start"), [([PORT], "1 problem,"), ([PORT, NAME], "2 problems,")])
def test_a_report_opens_with_their_number_and_that_nothing_was_changed(found, start):
    first = report(found).splitlines()[0]
    assert first.startswith(start)
    assert "nothing was changed" in first


def test_a_refusal_is_an_error_that_pyinfra_prints_without_a_traceback():
    refused = Refused(iter([PORT, OTHER]))
    assert isinstance(refused, PyinfraError)
    assert refused.problems == [OTHER, PORT]
    assert str(PORT) in str(refused)
