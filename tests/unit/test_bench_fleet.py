"""The figures of `make bench-fleet`: what is met, and what is a limit."""

import json
import re

import pytest

from quench.lab.progress import LabError
from tests.bench_fleet import router
from tests.bench_fleet.__main__ import Aim, aims_of, rates_of
from tests.bench_fleet.fleet import Fleet, alone, servers, wait, wait_until_up
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


FIGURES = {
    "rollout_failed": 0, "rollout_truncated": 0, "rollout_refused": 0, "reload_lost": 0, "failover_s": 1,
    "ttft_added_ms_p50": 0.5, "streams_held": 5000, "stream_errors": 0, "streams_address_moves": 0,
    "share_of_engine": 0.5, "times_python_router": 60,
}  # fmt: skip


@pytest.mark.parametrize("name", ["rollout_failed", "rollout_truncated", "rollout_refused", "reload_lost"])
def test_a_request_that_a_change_loses_or_refuses_fails_the_command(name):
    assert all(aim.met for aim in aims_of(FIGURES))
    assert [(aim.name, aim.hard) for aim in aims_of(FIGURES | {name: 1}) if not aim.met] == [(name, True)]


class Balancer:
    """Answers as HAProxy's socket does, if it runs at all, and remembers the states that were set."""

    name = "lb1"

    def __init__(self, runs=True):
        self.runs, self.states = runs, dict.fromkeys(("node1", "node2", "node3"), "UP")

    def root(self, command, *, check=True):
        if not self.runs:
            assert not check, "the command fails"
            return ""
        for change in re.findall(r"set server pool_m/(\w+) state (\w+)", command):
            self.states[change[0]] = {"maint": "MAINT", "ready": "UP"}[change[1]]
        if "show stat" not in command:
            return ""
        rows = [f"pool_m,{name},{state},2,L7OK,0,0,100,10.0.0.1:443" for name, state in self.states.items()]
        return "\n".join(["# pxname,svname,status,type,check_status,scur,qcur,weight,addr", *rows])


def fleet_of(*balancers):
    nodes = [type("Named", (), {"name": name})() for name in ("node1", "node2", "node3")]
    return Fleet(list(balancers), nodes)


def test_a_balancer_that_cannot_be_asked_is_not_up():
    assert servers(Balancer(runs=False)) == []
    wait_until_up(fleet_of(Balancer(), Balancer()), 1)
    with pytest.raises(LabError, match="nodes are down"):
        wait_until_up(fleet_of(Balancer(), Balancer(runs=False)), 0.1)


def test_while_an_engine_is_compared_no_other_gets_a_request_and_afterwards_all_do():
    balancers = Balancer(), Balancer()
    fleet = fleet_of(*balancers)
    with pytest.raises(ZeroDivisionError), alone(fleet, fleet.nodes[0]):
        seen = [dict(one.states) for one in balancers]
        raise ZeroDivisionError
    assert seen == [{"node1": "UP", "node2": "MAINT", "node3": "MAINT"}] * 2
    assert [set(one.states.values()) for one in balancers] == [{"UP"}] * 2
