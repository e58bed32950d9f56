"""The figures of `make bench-fleet`: what is met, and what is a limit."""

import json

import pytest

from quench.lab.progress import LabError
from tests.bench_fleet import router
from tests.bench_fleet.__main__ import Aim, rates_of
from tests.bench_fleet.fleet import wait
from tests.bench_fleet.path import Rates
from tests.load import Throughput


def rounds(*rates):
    return [Throughput(int(rate), 1.0, rate, 0.001, 0.002, 0.003, 1.0, {"status": 0}) for rate in rates]


@pytest.mark.parametrize(
    ("value", "at_most", "met"),
    [(3.0, True, True), (3.01, True, False), (3.0, False, True), (2.99, False, False), (None, True, False)],
)
def test_an_aim_is_met_or_not(value, at_most, met):
    aim = Aim("seconds", value, 3.0, at_most=at_most)
    assert aim.met is met
    assert ("MISSED" in str(aim)) is not met


def test_rates_are_medians_of_rounds():
    costs = [{"haproxy": 60.04}, {"haproxy": 90.0}, {"haproxy": 61.0}]
    found = rates_of(Rates(rounds(300, 900, 600), rounds(100, 300, 200), rounds(4, 2, 3), costs), "")
    assert (found["engine_requests_per_s"], found["requests_per_s"]) == (600, 200)
    assert (found["share_of_engine"], found["times_python_router"]) == (0.333, 66.7)
    assert found["processor_us_per_request"] == {"haproxy": 61.0}
    assert found["path_latency_ms_p50"] == 1.0


def test_without_a_router_in_python_its_figure_is_null_and_the_reason_is_there():
    found = rates_of(Rates(rounds(3), rounds(1), [], [{}]), "no index")
    assert json.loads(json.dumps(found))["requests_per_s_python_router"] is None
    assert found["why_no_python_router"] == "no index"
    assert not Aim("times", found["times_python_router"], 50, at_most=False).met


def test_the_pinned_version_is_read():
    assert router.version()[0].isdigit()


def test_what_does_not_come_is_said():
    with pytest.raises(LabError, match=r"nodes are down for 0\.1 s"):
        wait(lambda: False, "nodes are down", 0.1)
