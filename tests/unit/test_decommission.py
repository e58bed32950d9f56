"""How a node leaves its fleet: steps and their order, with a fleet in memory alone."""

import json
import os
import stat
from dataclasses import replace

import pytest

from quench.decommission import Certificate, Decommission, Found, Leaving, Options
from quench.decommission_command import told
from quench.haproxy import Server
from quench.problems import Refused
from quench.rollout_fleet import Failure
from quench.rollout_record import Claim, Record
from tests.unit.test_rollout import FakeFleet

CLAIM = Claim("decommission-node3-desk", "anna", "desk", "2026-11-20T10:00:00Z")
OTHER = Claim("r9", "bert", "laptop", "2026-11-19T10:00:00Z")
GOODS = [
    Found("unit", "nginx.service", "active"),
    Found("unit", "vllm@llama.service", "active"),
    Found("secret", "/etc/nginx/quench/tls.key", size=227),
    Found("data", "/srv/models", files=3, size=140_200_000_000),
]
SERIAL = Certificate("/etc/nginx/quench/tls.crt", "4F2A", "2027-02-01")
NODE = Leaving(
    "node3",
    roles=("base", "hardening"),
    units=("ssh.service",),
    secrets=("nginx_private_key", "vllm_hf_token"),
    certificates=(replace(SERIAL, path="secrets/node3.crt"),),
    todo=("take it out of the inventory",),
)


class FakeSite(FakeFleet):
    """A fleet of which a node leaves. `stuck` is what no wipe takes away."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.goods, self.stuck = list(GOODS), []

    def remains(self, node):
        self.did("remains", node.name)
        return [*self.goods, *self.stuck], [SERIAL]

    def wipe(self, node):
        assert set(self.of_node(node.name)) == {"MAINT"}, "requests would be lost"
        assert node.name not in [name for names in self.marks.values() for name in names], "a rollout would go on"
        self.did("wipe", node.name)
        self.goods = []
        return ["/"]

    def note(self, node, text):
        self.did("note", node)
        super().note(node, text)

    def of_node(self, name):
        return [server.status for (_, _, node), server in self.table.items() if node == name]


class World:
    """A decommission that can be run again, as the operator would."""

    def __init__(self, folder):
        self.folder, self.now, self.said, self.shown = folder, 0.0, [], []
        self.fleet, self.node, self.options, self.answer = FakeSite(), NODE, Options(), True

    def run(self, **options):
        decommission = Decommission(
            self.fleet, Record(self.folder, "prod"), CLAIM, self.node, self.options,
            say=self.said.append, confirm=self.confirm, clock=lambda: self.now, sleep=self.sleep,
        )  # fmt: skip
        return decommission.run(**options)

    def confirm(self, found):
        self.shown.append(list(found))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def sleep(self, seconds):
        self.now += seconds

    def history(self):
        return [json.loads(line) for line in (self.folder / "prod.log").read_text().splitlines()]


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)
    return World(tmp_path)


def touched(world):
    return [call for call in world.fleet.calls if call.startswith(("drain", "maint", "ready", "wipe", "mark"))]


def refusal(world, **options):
    with pytest.raises(Refused) as refused:
        world.run(**options)
    assert touched(world) == []
    assert world.fleet.locks in ({}, dict.fromkeys(world.fleet.balancers, OTHER), {"lb1": OTHER}, {"lb2": OTHER})
    return [str(problem) for problem in refused.value.problems]


def test_a_node_is_drained_closed_and_only_then_wiped(world):
    result = world.run()
    assert (result.outcome, result.code, result.reasons) == ("done", 0, [])
    assert touched(world) == ["drain node3", "drain node3", "maint node3", "maint node3", "wipe node3"]
    assert [step.name for step in result.steps] == ["drain", "wait", "maintenance", "wipe", "verify"]
    assert world.fleet.of_node("node3") == ["MAINT", "MAINT"]
    assert set(world.fleet.of_node("node1")) == {"UP"}
    assert world.fleet.locks == {}


def test_what_went_is_counted_and_what_is_left_to_do_is_said(world):
    result = world.run()
    assert result.stopped == ["nginx.service", "vllm@llama.service"]
    assert result.removed == GOODS[2:]
    assert result.left == []
    assert result.trimmed == ["/"]
    assert result.todo[0] == "take it out of the inventory"
    assert "serial 4F2A, good until 2027-02-01" in result.todo[1]
    assert any("logs" in text for text in result.stays)


def test_steps_and_end_are_written_down_on_both_sides(world):
    world.run()
    *steps, end = world.history()
    assert [line["step"] for line in steps] == ["drain", "wait", "maintenance", "wipe", "verify"]
    assert end.items() >= {
        "rollout": "decommission-node3-desk", "who": "anna", "source": "desk", "node": "node3", "outcome": "ok",
        "detail": "done", "stopped": "nginx.service vllm@llama.service",
        "removed": "/etc/nginx/quench/tls.key /srv/models",
    }.items()  # fmt: skip
    assert (
        "node3",
        "decommission-node3-desk by anna: stopped nginx.service vllm@llama.service; removed "
        "/etc/nginx/quench/tls.key /srv/models",
    ) in world.fleet.journal


def test_it_waits_for_the_last_answer(world):
    world.fleet.answers = {"node3": 6}
    result = world.run()
    assert (result.code, result.cut) == (0, 0)
    assert 0 < world.now < 60


def test_answers_that_take_too_long_are_cut_and_that_is_said(world):
    world.options = Options(drain_seconds=5)
    world.fleet.alter("node3", in_flight=1)
    result = world.run()
    assert result.cut == 2
    assert result.steps[1].detail == "2 requests are still in flight after 5 s, and will be cut"


def test_it_waits_for_the_haproxy_from_before_a_reload(world):
    world.fleet.reloaded = {"lb1": 6}
    result = world.run()
    assert result.code == 0
    assert result.steps[1].detail == "waited for the HAProxy from before a reload of lb1"
    assert 0 < world.now < 60


def test_the_operator_is_shown_what_will_go_and_another_name_changes_nothing(world):
    world.answer = False
    assert refusal(world) == ["node3: confirmation: what was typed is not its name; type node3, or say --yes"]
    assert world.shown == [GOODS]
    assert world.fleet.locks == {}


@pytest.mark.parametrize("moment", ["confirm", "remains node3"])
def test_ctrl_c_before_anything_changes_nothing(world, moment):
    if moment == "confirm":
        world.answer = KeyboardInterrupt()
    else:
        world.fleet.fails = {moment: KeyboardInterrupt()}
    result = world.run()
    assert (result.code, result.reasons) == (130, ["interrupted; nothing was changed"])
    assert touched(world) == []
    assert world.fleet.locks == {}


@pytest.mark.parametrize("moment", ["drain", "maint"])
def test_ctrl_c_before_the_wipe_brings_the_node_back(world, moment):
    world.fleet.fails = {f"{moment} node3": [None, KeyboardInterrupt()]}
    result = world.run()
    assert (result.outcome, result.code) == ("interrupted", 130)
    assert result.reasons == ["interrupted; nothing was removed; node3 has its requests again"]
    assert world.fleet.of_node("node3") == ["UP", "UP"]
    assert world.fleet.goods == GOODS
    assert world.fleet.locks == {}


def test_ctrl_c_while_it_waits_brings_it_back(world):
    def interrupt(seconds):
        raise KeyboardInterrupt

    world.fleet.alter("node3", in_flight=1)
    world.sleep = interrupt
    assert world.run().code == 130
    assert world.fleet.of_node("node3") == ["UP", "UP"]


def test_a_node_that_was_out_before_stays_out_after_ctrl_c(world):
    world.fleet.alter("node3", status="DRAIN")
    world.fleet.fails = {"maint node3": KeyboardInterrupt()}
    assert world.run().reasons == ["interrupted; nothing was removed; node3 is out, as it was"]
    assert world.fleet.of_node("node3") == ["DRAIN", "DRAIN"]


@pytest.mark.parametrize("moment", ["drain", "maint"])
def test_a_balancer_that_fails_on_the_way_brings_the_node_back(world, moment):
    world.fleet.fails = {f"{moment} node3": [None, Failure("lb2", "says no", "look at it")]}
    result = world.run()
    assert result.code == 1
    assert result.reasons[0].endswith("says no; look at it. nothing was removed; node3 has its requests again")
    assert world.fleet.of_node("node3") == ["UP", "UP"]
    assert world.fleet.goods == GOODS


@pytest.mark.parametrize(
    "end", [KeyboardInterrupt(), Failure("node3", "vllm@llama.service does not stop", "log in and look")]
)
def test_after_the_wipe_has_begun_the_node_stays_out_and_the_same_command_goes_on(world, end):
    world.fleet.fails = {"wipe node3": end}
    result = world.run()
    assert result.code in (1, 130)
    assert result.reasons[-1].endswith("part of it may be gone: run the same command again")
    assert world.fleet.of_node("node3") == ["MAINT", "MAINT"]
    assert world.fleet.locks == {}
    world.fleet.fails.clear()
    world.fleet.calls.clear()
    again = world.run()
    assert (again.outcome, again.code, again.left) == ("done", 0, [])
    # In maintenance already: drained again it would have its checks back.
    assert touched(world) == ["wipe node3"]


def test_the_failure_of_a_wipe_says_what_is_left(world):
    world.fleet.fails = {"wipe node3": Failure("node3", "nginx.service does not stop", "log in and look")}
    result = world.run()
    assert result.reasons[0] == "node3: wipe: nginx.service does not stop; log in and look"
    assert (
        result.reasons[1] == "node3: verify: nginx.service is still active; see journalctl --unit nginx.service there"
    )
    assert (result.stopped, result.removed, result.left) == ([], [], GOODS)
    assert world.history()[-1]["outcome"] == "failed"


@pytest.mark.parametrize(
    ("stuck", "said"),
    [
        (Found("secret", "/etc/vllm/llama.env", size=9), "/etc/vllm/llama.env is still there; log in and look"),
        (Found("unit", "nginx.service", "active"), "nginx.service is still active; see journalctl --unit"),
        (Found("elsewhere", "/srv/models/a", "/data/a"), "/srv/models/a leads to /data/a, which was not touched;"),
        (Found("shared", "/srv/models", "nfs"), "/srv/models is on nfs, where other hosts may have theirs; unmount"),
    ],
)  # fmt: skip
def test_a_wipe_that_leaves_something_is_none(world, stuck, said):
    world.fleet.stuck = [stuck]
    result = world.run()
    assert (result.outcome, result.code, result.left) == ("halted", 1, [stuck])
    assert result.reasons[0].startswith(f"node3: verify: {said}")
    assert len(result.reasons) == 2
    assert result.todo == []
    assert stuck not in result.removed
    assert world.run().code == 1, "as long as it is there"


def test_a_node_of_which_nothing_is_left_is_left_alone(world):
    world.run()
    world.fleet.calls.clear()
    world.shown.clear()
    result = world.run()
    assert (result.outcome, result.code) == ("nothing to do", 0)
    assert touched(world) == []
    assert world.shown == [], "there is nothing to confirm"
    assert result.todo, "what is left to the operator is said again"
    assert next(told(result)).startswith("node3 was decommissioned before; nothing was changed")


def test_a_wiped_node_that_has_its_requests_again_is_closed_again(world):
    world.fleet.goods = []
    assert world.run().outcome == "done"
    assert world.fleet.of_node("node3") == ["MAINT", "MAINT"]


def test_a_rollout_that_left_it_in_its_midst_does_not_go_on_with_it(world):
    record = Record(world.folder, "prod")
    record.begin("r1")
    record.step("node2", "change")
    record.step("node3", "change")
    record.close()
    world.fleet.marks = {"lb1": ["node2", "node3"], "lb2": ["node3"]}
    world.fleet.alter("node3", status="DRAIN")
    assert world.run().code == 0
    assert world.fleet.marks == {"lb1": ["node2"], "lb2": []}
    record = Record(world.folder, "prod")
    assert record.work == {"node2": "change"}
    assert record.unfinished == "r1"
    record.close()


# What is refused


def test_all_that_is_wrong_is_said_at_once(world):
    world.fleet = FakeSite(nodes=("node1", "node3"))
    world.fleet.locks = {"lb2": OTHER}
    world.fleet.alter("node1", status="MAINT")
    world.fleet.dead = {"node3"}
    assert refusal(world) == [
        "lb2: lock: rollout r9 of bert on laptop, since 2026-11-19T10:00:00Z holds it; wait until it is through; if it "
        "is dead: --take-over r9",
        "node3: balancers: no other node of pool_llama is up at lb1; bring one of them back first; if this is what you "
        "want: --last",
        "node3: node: does not answer; look at it; if it is dead: --unreachable",
    ]
    assert world.fleet.locks == {"lb2": OTHER}


def test_the_lock_of_a_dead_rollout_is_taken_over_by_its_name(world):
    world.fleet.locks = dict.fromkeys(world.fleet.balancers, OTHER)
    assert refusal(world)
    assert world.run(take_over="r9").code == 0
    assert world.fleet.locks == {}


def test_after_a_crash_the_same_command_finds_its_own_lock(world):
    world.fleet.locks = dict.fromkeys(world.fleet.balancers, CLAIM)
    assert world.run().code == 0


def test_somebody_who_takes_the_lock_over_has_the_rest(world):
    wait = world.sleep

    def taken(seconds):
        wait(seconds)
        world.fleet.locks = dict.fromkeys(world.fleet.balancers, OTHER)
        world.fleet.alter("node3", in_flight=0)

    world.fleet.alter("node3", in_flight=1)
    world.sleep = taken
    result = world.run()
    assert result.code == 1
    assert "rollout r9 of bert on laptop" in result.reasons[0]
    assert "wipe node3" not in world.fleet.calls
    assert "maint node3" not in world.fleet.calls
    assert world.fleet.locks == dict.fromkeys(world.fleet.balancers, OTHER)


def test_a_balancer_that_does_not_answer_is_refused_once(world):
    world.fleet.dead = {"lb2"}
    assert refusal(world) == ["lb2: lock: does not answer; look at it"]


def test_the_only_node_of_a_pool_needs_last(world):
    world.fleet = FakeSite(nodes=("node3",))
    problems = refusal(world)
    assert len(problems) == 2
    assert "node3: balancers: is the only node of pool_llama at lb1: nobody would be left to answer" in problems[0]
    world.options = Options(last=True)
    assert world.run().code == 0


def test_the_only_node_of_one_of_two_pools_needs_last(world):
    world.fleet.table["lb2", "pool_mistral", "node3"] = Server("pool_mistral", "node3", "UP", "L7OK")
    assert [problem[:59] for problem in refusal(world)] == [
        "node3: balancers: is the only node of pool_mistral at lb2: "
    ]


def test_a_node_of_weight_0_does_not_stand_in_for_it(world):
    for node in ("node1", "node2"):
        world.fleet.alter(node, weight=0)
    assert refusal(world)[0] == (
        "node3: balancers: the other nodes of pool_llama that are up have weight 0 at lb1, and get no request; give "
        "one of them a weight first: its nginx_weight, and a run of deploys/balancer.py; if this is what you want: "
        "--last"
    )
    world.fleet.alter("node2", weight=1)
    assert world.run().code == 0


def test_one_that_is_out_already_leaves_no_gap(world):
    world.fleet = FakeSite(nodes=("node3",))
    world.fleet.alter("node3", status="MAINT")
    assert world.run().code == 0


def test_another_node_that_goes_down_meanwhile_stops_it(world):
    confirm = world.confirm

    def slow(found):
        world.fleet.alter("node1", status="DOWN")
        world.fleet.alter("node2", status="DOWN")
        return confirm(found)

    world.confirm = slow
    result = world.run()
    assert result.code == 1
    assert "drain: no other node of pool_llama is up at lb1" in result.reasons[0]
    assert touched(world) == []


def test_a_node_that_a_balancer_does_not_know_is_refused(world):
    del world.fleet.table["lb2", "pool_llama", "node3"]
    assert refusal(world) == [
        "node3: balancers: lb2 has it in no pool; bring the balancers up to date first: deploys/balancer.py"
    ]


# A dead node


def test_of_a_dead_node_the_balancers_are_told_and_what_it_may_have_is_said(world):
    world.fleet.dead, world.options = {"node3"}, Options(unreachable=True)
    world.fleet.marks = {"lb1": ["node3"]}
    result = world.run()
    assert (result.outcome, result.code) == ("unwiped", 1)
    assert world.fleet.of_node("node3") == ["MAINT", "MAINT"]
    assert world.fleet.marks == {"lb1": []}
    (reason,) = result.reasons
    assert "node3: was not wiped: does not answer" in reason
    assert "nginx_private_key, vllm_hf_token, the weights in /srv/models" in reason
    assert result.certificates == list(NODE.certificates), "by the inventory: it cannot be asked"
    assert "serial 4F2A" in result.todo[1]
    assert (result.removed, result.stays) == ([], [])
    assert not [call for call in world.fleet.calls if call.startswith(("wipe", "note"))]
    assert world.history()[-1]["outcome"] == "failed"


def test_a_dead_node_that_is_out_already_is_still_not_wiped(world):
    world.fleet.dead, world.options = {"node3"}, Options(unreachable=True)
    world.run()
    world.fleet.calls.clear()
    assert world.run().code == 1
    assert touched(world) == []


def test_a_node_that_answers_is_not_left_with_its_secrets(world):
    world.options = Options(unreachable=True)
    assert refusal(world) == ["node3: node: answers, so that it can be wiped; leave --unreachable out"]


def test_a_dead_node_that_came_back_is_wiped_by_the_same_command(world):
    world.fleet.dead, world.options = {"node3"}, Options(unreachable=True)
    world.run()
    world.fleet.dead, world.options = set(), Options()
    result = world.run()
    assert (result.outcome, result.removed) == ("done", GOODS[2:])


def test_the_log_is_for_the_operator_alone(world):
    world.run()
    assert stat.S_IMODE((world.folder / "prod.log").stat().st_mode) == 0o600
