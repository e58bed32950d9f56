"""The steps of a rollout and their order, with a fleet that exists in memory alone."""

import json
import os
from contextlib import suppress
from dataclasses import replace

import pytest

from quench.haproxy import Server
from quench.problems import Refused
from quench.rollout import NodePlan, Options, Rollout
from quench.rollout_fleet import Failure, Kept
from quench.rollout_record import Claim, Record

CLAIM = Claim("r1", "anna", "desk", "2026-11-20T10:00:00Z")
OTHER = Claim("r9", "bert", "laptop", "2026-11-19T10:00:00Z")
PLANS = {f"node{number}": NodePlan(f"new-{number}", ("llama",)) for number in (1, 2, 3)}
# What is done with a node when nothing fails, as far as it matters for the order.
GOOD = ["drain", "keep", "change", "units", "complete llama", "prompts", "host checks", "let go new", "maint", "ready"]
WORKING = ("UP", "L7OK")


class FakeFleet:
    """Two balancers, each with a pool for each model. `fails` has what goes wrong, by `what host`."""

    def __init__(self, nodes=("node1", "node2", "node3"), pools=("pool_llama",)):
        self.balancers, self.without = ["lb1", "lb2"], []
        self.table = {
            (balancer, pool, node): Server(pool, node, *WORKING, address=f"{node}:443")
            for balancer in self.balancers for pool in pools for node in nodes
        }  # fmt: skip
        self.calls, self.journal, self.fails = [], [], {}
        self.locks, self.marks = {}, {}
        self.kept, self.release = {}, dict.fromkeys(nodes, "old")
        self.dead, self.cures, self.open = set(), True, set()
        # Balancers that are left out, and how often each is asked before it is back.
        self.back = {}
        # Whether a node that came back gets its share bit by bit.
        self.slowly = {}
        # Of a node that is drained: how often it is asked after until its answers are over.
        self.answers = {}
        # Of a balancer that was reloaded: how often its former process is asked after until that has ended.
        self.reloaded = {}

    def did(self, what, host, node=None):
        self.calls.append(f"{what} {node or host}")
        if f"{what} {node or host}" in self.fails:
            error = self.fails[f"{what} {node or host}"]
            if isinstance(error, list):
                error = error.pop(0) if error else None
            if error is not None:
                raise error
        if host in self.dead:
            raise Failure(host, "does not answer", "look at it")

    def of(self, node):
        """What was done with a node, in order, without repetitions."""
        found = [call.removesuffix(f" {node}") for call in self.calls if call.endswith(f" {node}")]
        return [call for number, call in enumerate(found) if call not in found[:number]]

    def alter(self, node, **changes):
        for key, server in self.table.items():
            if key[2] == node:
                self.table[key] = replace(server, **changes)

    def is_there(self, balancer):
        self.did("is there", balancer)
        self.back[balancer] = self.back.get(balancer, 1000) - 1
        return self.back[balancer] <= 0

    def states(self):
        return {(balancer, node): server.status for (balancer, _, node), server in self.table.items()}

    def servers(self, balancer):
        self.did("stat", balancer)
        for key in list(self.table):
            if key[0] == balancer and self.table[key].status == "DRAIN" and key[2] in self.answers:
                self.answers[key[2]] = left = max(0, self.answers[key[2]] - 1)
                self.table[key] = replace(self.table[key], in_flight=left)
        return [server for key, server in self.table.items() if key[0] == balancer]

    def set_state(self, balancer, servers, state):
        for server in servers:
            self.did(state, balancer, server.name)
            if state == "ready":
                self.slowly[balancer, server.name] = server.status == "MAINT"
            status = {"ready": "UP", "drain": "DRAIN", "maint": "MAINT"}[state]
            self.table[balancer, server.pool, server.name] = replace(server, status=status)

    def former(self, balancer):
        self.did("former", balancer)
        left = self.reloaded.get(balancer, 0)
        self.reloaded[balancer] = max(0, left - 1)
        return int(left > 0)

    def lock(self, balancer, claim, take_over):
        self.did("lock", balancer)
        holder = self.locks.get(balancer)
        if holder is None or holder.id in (claim.id, take_over):
            self.locks[balancer] = claim
            return None
        return holder

    def unlock(self, balancer, claim):
        self.did("unlock", balancer)
        if self.locks.get(balancer) == claim:
            del self.locks[balancer]

    def marked(self, balancer):
        return list(self.marks.get(balancer, []))

    def mark(self, balancer, nodes):
        self.did("mark", balancer)
        self.marks[balancer] = list(nodes)

    def keep(self, node, models):
        self.did("keep", node)
        if node in self.open:
            return replace(self.kept[node], fresh=False)
        self.open.add(node)
        self.kept[node] = Kept(self.release[node], tuple(models), fresh=True)
        return self.kept[node]

    def change(self, nodes):
        for node in nodes:
            assert all(self.states()[balancer, node] != "UP" for balancer in self.balancers), "requests would be lost"
            self.release[node] = "half"
            self.did("change", node)
            self.release[node] = "new"

    def restore(self, node):
        assert all(self.states()[balancer, node] != "UP" for balancer in self.balancers), "requests would be lost"
        self.did("restore", node)
        self.release[node] = self.kept[node].plan
        if self.cures:
            self.fails.clear()

    def let_go(self, node, plan):
        self.did(f"let go {plan.partition('-')[0]}", node)
        self.open.discard(node)

    def units(self, node):
        self.did("units", node)
        return []

    def completion(self, balancer, node, model):
        # At first it is asked of the release that is there.
        if self.release[node.name] != "old":
            self.did(f"complete {model}", node.name)

    def prompts(self, balancer, node, models):
        self.did("prompts", node.name)

    def host_checks(self, node):
        self.did("host checks", node)

    def note(self, node, text):
        self.journal.append((node, text))


class World:
    """A rollout that can be run again, as the operator would."""

    def __init__(self, folder):
        self.folder, self.now, self.said = folder, 0.0, []
        self.fleet, self.plans, self.options, self.claim = FakeFleet(), dict(PLANS), Options(), CLAIM

    def run(self, **options):
        record = Record(self.folder, "prod")
        try:
            claim = replace(self.claim, id=record.unfinished or self.claim.id)
            rollout = Rollout(
                self.fleet, record, self.plans, claim, self.options,
                say=self.said.append, clock=lambda: self.now, sleep=self.sleep,
            )  # fmt: skip
            return rollout.run(**options)
        finally:
            record.close()

    def sleep(self, seconds):
        self.now += seconds

    def history(self):
        return [json.loads(line) for line in (self.folder / "prod.log").read_text().splitlines()]


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # half of the seconds of these tests
    return World(tmp_path)


def broken(what="it is broken"):
    return Failure("node2", what, "mend it")


def outcomes(result):
    return {node: found.outcome for node, found in result.nodes.items()}


def test_nodes_are_brought_one_after_the_other_each_by_all_steps_in_their_order(world):
    result = world.run()
    assert (result.outcome, result.code, result.reasons) == ("done", 0, [])
    assert outcomes(result) == dict.fromkeys(PLANS, "done")
    for node in PLANS:
        assert world.fleet.of(node) == GOOD
    changes = [call for call in world.fleet.calls if call.startswith(("change", "ready"))]
    assert changes[:4] == ["change node1", "ready node1", "ready node1", "change node2"]
    assert set(world.fleet.states().values()) == {"UP"}
    assert world.fleet.locks == {}
    assert world.fleet.marks == {"lb1": [], "lb2": []}


def test_the_balancers_are_told_before_the_node_is_touched(world):
    world.run()
    calls = world.fleet.calls
    assert (
        calls.index("mark lb2") < calls.index("drain node1") < calls.index("keep node1") < calls.index("change node1")
    )
    assert [call for call in calls if call == "drain node1"] == ["drain node1"] * 2, "at both balancers"


def test_a_node_that_was_changed_gets_its_share_of_requests_bit_by_bit(world):
    world.run()
    # HAProxy's slowstart is for a server that leaves maintenance, and not for one that was drained.
    assert world.fleet.slowly == {(balancer, node): True for balancer in world.fleet.balancers for node in PLANS}


def test_a_node_that_was_left_alone_gets_its_whole_share_at_once(world):
    world.fleet.fails = {"keep node1": broken()}
    world.run()
    assert world.fleet.slowly == {(balancer, "node1"): False for balancer in world.fleet.balancers}


def test_a_rollout_that_dies_while_a_node_comes_back_begins_with_it_again(world):
    world.fleet.fails = {"ready node2": [None, SystemExit(9)]}
    with pytest.raises(SystemExit):
        world.run()
    assert world.fleet.states()["lb2", "node2"] == "MAINT"
    world.fleet.locks.clear()
    world.fleet.fails.clear()
    assert outcomes(world.run()) == {"node1": "skipped", "node2": "done", "node3": "done"}
    assert set(world.fleet.states().values()) == {"UP"}


def test_a_completion_is_asked_for_by_every_balancer(world):
    world.run()
    assert world.fleet.calls.count("complete llama node1") == 2


def test_steps_are_said_and_written_down_with_who_and_what(world):
    world.run()
    assert [one.step.name for one in world.said if one.node == "node2"] == [
        "drain", "wait", "keep", "change", "verify", "ready",
    ]  # fmt: skip
    assert {(one.number, one.total) for one in world.said if one.node == "node2"} == {(2, 3)}
    line = next(line for line in world.history() if line["node"] == "node2" and line["step"] == "change")
    assert line.items() >= {
        "rollout": "r1", "who": "anna", "source": "desk", "outcome": "ok", "plan_before": "old", "plan_after": "new-2",
    }.items()  # fmt: skip
    assert ("node2", "rollout r1 by anna: change: ok (plan old to new-2)") in world.fleet.journal


def test_a_node_is_changed_when_its_last_answer_is_over(world):
    world.fleet.answers = {"node2": 6}
    result = world.run()
    assert result.nodes["node2"].cut == 0
    assert 0 < world.now < 60


def test_answers_that_take_too_long_are_cut_and_that_is_said(world):
    world.options = Options(drain_seconds=5)
    world.fleet.alter("node2", in_flight=1)
    result = world.run()
    assert result.outcome == "done"
    assert result.nodes["node2"].cut == 2
    (wait,) = [step for step in result.nodes["node2"].steps if step.name == "wait"]
    assert wait.detail == "2 requests are still in flight after 5 s, and will be cut"


def test_a_node_is_changed_when_the_haproxy_from_before_a_reload_has_ended(world):
    """It may still send requests to the node, and tells nobody of those that it has in flight."""
    world.fleet.reloaded = {"lb2": 6}
    change = world.fleet.change

    def ended(nodes):
        assert world.fleet.reloaded["lb2"] == 0
        change(nodes)

    world.fleet.change = ended
    result = world.run()
    assert result.outcome == "done"
    details = [step.detail for node in PLANS for step in result.nodes[node].steps if step.name == "wait"]
    assert details == ["waited for the HAProxy from before a reload of lb2", "", ""]
    assert 5 < world.now < 60


def test_a_haproxy_that_does_not_end_is_waited_for_no_longer_than_answers_are_and_that_is_said(world):
    world.options = Options(drain_seconds=5)
    world.fleet.reloaded = {"lb1": 1000, "lb2": 3}
    world.fleet.alter("node2", in_flight=1)
    result = world.run()
    assert result.outcome == "done"
    details = {node: step.detail for node in PLANS for step in result.nodes[node].steps if step.name == "wait"}
    late = "the HAProxy from before a reload of lb1 still serves after 5 s, and what it has in flight will be cut"
    assert details == {
        "node1": late, "node2": f"2 requests are still in flight after 5 s, and will be cut; {late}", "node3": late,
    }  # fmt: skip


# What fails, whether the node has been touched by then, and the step that the reason names.
FAILURES = [
    ("drain", False, "drain"),
    ("keep", False, "keep"),
    ("change", True, "change"),
    ("units", True, "verify"),
    ("complete llama", True, "verify"),
    ("prompts", True, "verify"),
    ("host checks", True, "verify"),
    ("let go new", True, "verify"),
    ("maint", True, "ready"),
    ("ready", True, "ready"),
]


@pytest.mark.parametrize(("what", "touched", "step"), FAILURES, ids=[row[0] for row in FAILURES])
def test_a_failure_halts_and_the_node_serves_as_before(world, what, touched, step):
    world.fleet.fails = {f"{what} node2": broken()}
    result = world.run()
    assert (result.outcome, result.code) == ("halted", 1)
    assert outcomes(result) == {
        "node1": "done", "node2": "restored" if touched else "untouched", "node3": "not begun",
    }  # fmt: skip
    (reason,) = result.reasons
    assert reason.startswith(f"node2: {step}: it is broken; mend it. ")
    assert "\n" not in reason
    assert ("former release" in reason) == touched
    assert world.fleet.of("node2").count("restore") == touched
    assert world.fleet.release["node2"] == "old"
    if what != "drain":
        assert set(world.fleet.states().values()) == {"UP"}
        assert world.fleet.marks["lb1"] == []
    assert "node3" not in world.fleet.journal
    assert world.fleet.locks == {}


def test_a_former_release_is_drained_restored_verified_and_only_then_back(world):
    world.fleet.fails = {"complete llama node2": broken()}
    world.run()
    calls = [call for call in world.fleet.calls if call.endswith("node2")]
    undone = calls[calls.index("complete llama node2") + 1 :]
    assert undone == [
        "drain node2", "drain node2", "restore node2", "units node2", "let go old node2", "maint node2", "maint node2",
        "ready node2", "ready node2",
    ]  # fmt: skip
    names = [one.step.name for one in world.said if one.node == "node2"]
    assert names[-4:] == ["verify", "restore", "verify the former release", "ready"]


@pytest.mark.parametrize("again", ["restore node2", "units node2"])
def test_a_node_whose_former_release_fails_too_stays_drained(world, again):
    world.fleet.cures = False
    world.fleet.fails = {"change node2": broken(), again: broken("it is dead")}
    result = world.run()
    assert result.code == 1
    assert result.nodes["node2"].outcome == "drained"
    (reason,) = result.reasons
    assert "does not come up either (node2: it is dead): node2 stays drained" in reason
    assert world.fleet.states()["lb1", "node2"] == "DRAIN"
    assert world.fleet.marks["lb1"] == ["node2"]
    assert world.fleet.locks == {}
    # The next run begins with it, and what was kept first is kept on.
    world.fleet.fails.clear()
    world.fleet.calls.clear()
    assert outcomes(world.run()) == {"node1": "skipped", "node2": "done", "node3": "done"}
    assert world.fleet.calls.index("change node2") < world.fleet.calls.index("change node3")
    assert "complete llama node2" in world.fleet.calls


def test_a_node_that_fails_again_goes_back_to_the_release_before_the_first_attempt(world):
    world.fleet.cures = False
    world.fleet.fails = {"change node2": broken(), "restore node2": broken("it is dead")}
    world.run()
    assert world.fleet.release["node2"] == "half"
    world.fleet.fails = {"units node2": [broken()]}
    result = world.run()
    assert world.fleet.release["node2"] == "old"
    assert result.nodes["node2"].outcome == "restored"


def test_a_node_that_a_balancer_does_not_see_up_again_has_its_former_release(world):
    def stays_down(balancer, servers, state):
        for server in servers:
            status = "DRAIN" if state == "drain" else "DOWN" if world.fleet.release[server.name] == "new" else "UP"
            world.fleet.table[balancer, server.pool, server.name] = replace(server, status=status)

    world.fleet.set_state = stays_down
    world.plans = {"node1": PLANS["node1"]}
    result = world.run()
    assert result.nodes["node1"].outcome == "restored"
    assert result.reasons[0].startswith("node1: ready: lb1 still has it as DOWN (L7OK) in pool_llama after 300 s; ")


def test_a_node_that_its_balancers_see_sick_is_given_time_and_then_up(world):
    change = world.fleet.change

    def sick(nodes):
        change(nodes)
        world.fleet.alter(nodes[0], check="L7STS")

    def cure(node):
        world.fleet.release[node] = "old"
        world.fleet.alter(node, check="L7OK")

    world.fleet.change, world.fleet.restore = sick, cure
    result = world.run()
    assert result.reasons[0].startswith("node1: verify: lb1 sees it as DRAIN (L7STS) in pool_llama, 300 s later; ")
    assert result.nodes["node1"].outcome == "restored"


def test_a_balancer_that_has_forgotten_the_drain_is_told_again(world):
    change = world.fleet.change

    def forget(nodes):
        change(nodes)
        world.fleet.alter(nodes[0], status="UP", check="L4CON")

    def units(node):
        if world.fleet.states()["lb1", node] == "DRAIN":
            world.fleet.alter(node, check="L7OK")
        return []

    world.fleet.change, world.fleet.units = forget, units
    assert world.run().code == 0
    assert world.fleet.calls.count("drain node1") == 4


@pytest.mark.parametrize("moment", ["drain", "keep"])
def test_ctrl_c_before_the_change_brings_the_node_back(world, moment):
    world.fleet.fails = {f"{moment} node2": KeyboardInterrupt()}
    result = world.run()
    assert (result.outcome, result.code) == ("interrupted", 130)
    assert set(world.fleet.states().values()) == {"UP"}
    assert outcomes(result) == {"node1": "done", "node2": "untouched", "node3": "not begun"}
    assert result.reasons == ["interrupted; no node is drained; run the same command again to go on"]
    assert world.fleet.locks == {}


def test_what_was_kept_of_a_node_that_was_not_changed_is_let_go(world):
    """Somebody may change it by hand before the next rollout, which is then not to bring back what was before that."""
    world.options = Options(batch=2)
    world.fleet.fails = {"keep node2": broken()}
    assert outcomes(world.run()) == {"node1": "untouched", "node2": "untouched", "node3": "not begun"}
    assert world.fleet.open == set()
    world.fleet.fails.clear()
    world.fleet.release["node1"] = "by hand"
    world.fleet.fails = {"change node1": broken()}
    assert world.run().nodes["node1"].plan_before == "by hand"


def test_ctrl_c_while_the_balancers_are_locked_leaves_no_lock(world):
    world.fleet.fails = {"lock lb2": KeyboardInterrupt()}
    with suppress(KeyboardInterrupt):
        world.run()
    assert world.fleet.locks == {}
    # Nor one that the balancer has, though nobody has heard so any more.
    assert world.fleet.calls[-2:] == ["unlock lb1", "unlock lb2"]


@pytest.mark.parametrize("moment", ["change", "units", "complete llama", "prompts", "host checks"])
def test_ctrl_c_after_it_leaves_the_node_drained_and_the_next_run_goes_on(world, moment):
    world.fleet.fails = {f"{moment} node2": KeyboardInterrupt()}
    result = world.run()
    step = "change" if moment == "change" else "verify"
    assert result.code == 130
    assert result.reasons == [f"node2: drained, interrupted in the step '{step}'; run the same command again to go on"]
    assert world.fleet.states()["lb1", "node2"] == "DRAIN"
    assert world.fleet.locks == {}
    world.fleet.fails.clear()
    again = world.run()
    assert again.rollout == "r1"
    assert outcomes(again) == {"node1": "skipped", "node2": "done", "node3": "done"}


def test_after_a_crash_the_node_in_work_comes_first_and_what_is_done_is_skipped(world):
    world.fleet.fails = {"change node2": SystemExit(9)}
    with pytest.raises(SystemExit):
        world.run()
    # A crash gives no lock back.
    world.fleet.locks = dict.fromkeys(world.fleet.balancers, CLAIM)
    world.fleet.fails.clear()
    world.fleet.calls.clear()
    world.claim = replace(CLAIM, id="r2", since="later")
    result = world.run()
    assert result.rollout == "r1", "it is the same rollout, so the lock is its own"
    assert outcomes(result) == {"node1": "skipped", "node2": "done", "node3": "done"}
    assert [call for call in world.fleet.calls if call.startswith("change")] == ["change node2", "change node3"]


def test_a_node_that_was_done_is_brought_anew_when_it_is_to_get_something_else(world):
    world.fleet.fails = {"change node2": broken()}
    world.run()
    world.fleet.fails.clear()
    world.plans["node1"] = NodePlan("newer-1", ("llama",))
    assert outcomes(world.run()) == dict.fromkeys(PLANS, "done")


def test_a_node_that_was_done_is_brought_anew_when_a_secret_of_it_has_changed(world):
    world.plans = {node: replace(plan, secrets="sealed") for node, plan in PLANS.items()}
    world.fleet.fails = {"change node2": broken()}
    world.run()
    world.fleet.fails.clear()
    world.plans["node1"] = replace(world.plans["node1"], secrets="sealed anew")
    world.fleet.fails = {"change node3": broken()}
    assert outcomes(world.run()) == {"node1": "done", "node2": "done", "node3": "restored"}
    world.fleet.fails.clear()
    assert outcomes(world.run()) == {"node1": "skipped", "node2": "skipped", "node3": "done"}
    # Others see the hash without secrets alone.
    assert "sealed" not in (world.folder / "prod.log").read_text()
    assert not [text for _, text in world.fleet.journal if "sealed" in text]


def test_a_record_keeps_its_salt(world):
    salts = set()
    for _ in range(2):
        record = Record(world.folder, "prod")
        salts.add(record.salt)
        record.close()
        world.run()
    record = Record(world.folder, "prod")
    other = Record(world.folder, "other")
    assert len({*salts, record.salt}) == 2, "the first was never written"
    assert other.salt != record.salt
    assert len(record.salt) == 16
    record.close()
    other.close()


def test_a_rollout_that_is_through_starts_anew(world):
    world.run()
    world.claim = replace(CLAIM, id="r2")
    again = world.run()
    assert again.rollout == "r2"
    assert outcomes(again) == dict.fromkeys(PLANS, "done")


def test_a_node_that_a_dead_rollout_of_another_controller_left_is_found_at_the_balancers(world):
    world.fleet.alter("node3", status="DRAIN")
    world.fleet.marks = {"lb2": ["node3"]}
    world.fleet.locks = dict.fromkeys(world.fleet.balancers, OTHER)
    world.fleet.kept, world.fleet.open = {"node3": Kept("older", ("llama",), fresh=False)}, {"node3"}
    result = world.run(take_over="r9")
    assert result.code == 0
    changes = [call for call in world.fleet.calls if call.startswith("change")]
    assert changes == ["change node3", "change node1", "change node2"]
    assert result.nodes["node3"].plan_before == "older"
    assert world.fleet.marks["lb1"] == []


def test_a_node_that_was_left_drained_and_is_no_part_of_this_is_said_and_not_forgotten(world):
    world.fleet.alter("node3", status="DRAIN")
    # One that no balancer knows any more is.
    world.fleet.marks = {"lb1": ["node3", "node9"]}
    del world.plans["node3"]
    result = world.run()
    assert result.code == 0
    assert result.reasons == ["node3: was left drained by a rollout before, and is no part of this one"]
    assert world.fleet.marks["lb1"] == ["node3"]
    assert world.fleet.states()["lb1", "node3"] == "DRAIN"


def test_a_node_that_may_be_half_changed_does_not_come_back_unverified(world):
    world.fleet.alter("node3", status="DRAIN")
    world.fleet.marks = {"lb1": ["node3"]}
    world.fleet.fails = {"keep node3": Failure("node3", "does not answer", "look at it")}
    result = world.run()
    assert result.nodes["node3"].outcome == "drained"
    assert "node3 stays drained, as it was" in result.reasons[0]
    assert world.fleet.states()["lb1", "node3"] == "DRAIN"


def refusal(world, **options):
    with pytest.raises(Refused) as refused:
        world.run(**options)
    assert not [call for call in world.fleet.calls if call.startswith(("drain", "change", "keep", "mark"))]
    return [str(problem) for problem in refused.value.problems]


def test_two_at_once_are_refused_with_who_it_is(world):
    world.fleet.locks = {"lb2": OTHER}
    assert refusal(world) == [
        "lb2: lock: rollout r9 of bert on laptop, since 2026-11-19T10:00:00Z holds it; wait until it is through; if it "
        "is dead: --take-over r9"
    ]
    assert world.fleet.locks == {"lb2": OTHER}, "the one that was taken is given back"


def test_all_balancers_that_say_no_are_named_at_once(world):
    world.fleet.locks = {"lb1": OTHER}
    world.fleet.dead = {"lb2"}
    assert [problem.partition(": ")[0] for problem in refusal(world)] == ["lb1", "lb2"]
    assert world.fleet.locks == {"lb1": OTHER}


def test_only_the_rollout_that_is_named_is_taken_over(world):
    world.fleet.locks = {"lb1": OTHER}
    assert refusal(world, take_over="r8")
    assert world.run(take_over="r9").code == 0


def test_two_processes_of_one_machine_are_refused(world):
    record = Record(world.folder, "prod")
    assert "another process of this machine" in refusal(world)[0]
    record.close()
    assert world.run().code == 0


def test_a_rollout_that_is_taken_over_touches_nothing_more(world):
    change = world.fleet.change

    def taken(nodes):
        change(nodes)
        world.fleet.locks = dict.fromkeys(world.fleet.balancers, OTHER)

    world.fleet.change = taken
    result = world.run()
    assert (result.outcome, result.code) == ("halted", 1)
    assert "rollout r9 of bert on laptop, since 2026-11-19T10:00:00Z has taken this rollout over" in result.reasons[0]
    assert not [call for call in world.fleet.calls if call.startswith(("restore", "ready"))]
    assert world.fleet.locks == dict.fromkeys(world.fleet.balancers, OTHER)


def test_the_only_node_of_a_pool_is_refused_with_the_alternative(world):
    world.fleet = FakeFleet(nodes=("node1",))
    world.plans = {"node1": PLANS["node1"]}
    problems = refusal(world)
    assert "node1: balancers: is the only node of pool_llama at lb1" in problems[0]
    assert "in a maintenance window, with pyinfra itself" in problems[0]


def test_a_batch_that_would_take_a_whole_pool_is_refused(world):
    world.options = Options(batch=3)
    assert "a batch would take all 3 nodes of pool_llama at lb1; make --batch smaller" in refusal(world)[0]


def test_a_node_that_no_balancer_knows_is_refused(world):
    world.plans["node4"] = NodePlan("new-4", ())
    assert "node4: balancers: lb1 has it in no pool" in refusal(world)[0]


@pytest.mark.parametrize("status", ["DRAIN", "MAINT"])
def test_a_node_that_somebody_has_taken_out_is_not_brought_back_behind_their_back(world, status):
    world.fleet.alter("node2", status=status)
    assert f"node2: balancers: somebody has taken it out: it is {status}" in refusal(world)[0]


def test_a_balancer_that_does_not_answer_is_refused(world):
    world.fleet.dead = {"lb2"}
    assert refusal(world) == ["lb2: lock: does not answer; look at it"]
    assert world.fleet.locks == {}


def test_a_balancer_that_is_down_can_be_left_out_and_that_is_said(world):
    world.fleet.balancers, world.fleet.without, world.fleet.dead = ["lb1"], ["lb2"], {"lb2"}
    world.fleet.is_there = lambda balancer: False
    result = world.run()
    assert (result.code, outcomes(result)) == (0, dict.fromkeys(PLANS, "done"))
    line = "does not answer, and is left out: it is not to come back before this is over"
    assert result.reasons == [f"lb2: {line}"]
    assert (world.said[0].node, world.said[0].step.detail) == ("lb2", line)
    assert not [call for call in world.fleet.calls if call.endswith("lb2")]


def test_a_balancer_that_answers_is_not_left_out(world):
    world.fleet.balancers, world.fleet.without, world.fleet.back = ["lb1"], ["lb2"], {"lb2": 1}
    assert refusal(world) == [
        "lb2: balancers: is left out, and answers: it would send requests to a node that is being changed; leave "
        "--exclude lb2 out, or switch it off"
    ]
    assert world.fleet.locks == {}


@pytest.mark.parametrize(("asked", "step"), [(2, "drain"), (3, "keep")])
def test_a_balancer_that_is_back_stops_it_before_a_node_is_changed(world, asked, step):
    world.fleet.balancers, world.fleet.without, world.fleet.back = ["lb1"], ["lb2"], {"lb2": asked}
    result = world.run()
    assert (result.code, result.nodes["node1"].outcome) == (1, "untouched")
    assert result.reasons[-1].startswith(f"lb2: {step}: is left out, and answers")
    assert world.fleet.states()["lb1", "node1"] == "UP"
    assert "change node1" not in world.fleet.calls


def test_a_node_is_not_drained_while_another_is_down(world):
    world.fleet.alter("node3", status="DOWN", check="L4CON")
    result = world.run()
    assert result.reasons == [
        "node1: drain: not drained: node3 is DOWN (L4CON) in pool_llama at lb1; see to node3 first, or set server "
        "pool_llama/node3 state maint. node1 is unchanged, and has its requests again"
    ]
    assert "drain node1" not in world.fleet.calls
    assert world.now >= 30, "it may come up by itself"


def test_a_node_in_maintenance_does_not_hold_the_others_up_but_one_must_be_up(world):
    world.plans = {node: PLANS[node] for node in ("node1", "node2")}
    world.fleet.alter("node3", status="MAINT")
    assert world.run().code == 0
    world.plans = {"node1": PLANS["node1"]}
    world.fleet.alter("node2", status="MAINT")
    assert "no other node of pool_llama is up at lb1" in world.run().reasons[0]


def test_a_node_of_weight_0_does_not_stand_in_for_another(world):
    """Blue and green: all requests go to green, and blue has none."""
    world.fleet = FakeFleet(nodes=("blue", "green"))
    world.fleet.alter("blue", weight=0)
    world.plans = {"green": NodePlan("new-1", ("llama",))}
    assert refusal(world) == [
        f"green: balancers: the other nodes of pool_llama have weight 0 at {balancer}: nobody would be left to answer; "
        "give one of them a weight first: its nginx_weight, and a run of deploys/balancer.py"
        for balancer in ("lb1", "lb2")
    ]
    world.plans = {"blue": NodePlan("new-2", ("llama",))}
    assert world.run().code == 0


def test_a_node_whose_weight_went_to_0_meanwhile_does_not_either(world):
    def weigh(nodes):
        change(nodes)
        world.fleet.alter("node2", weight=0)
        world.fleet.alter("node3", status="MAINT")

    change, world.fleet.change = world.fleet.change, weigh
    world.plans = {node: PLANS[node] for node in ("node2", "node1")}
    result = world.run()
    assert outcomes(result) == {"node2": "done", "node1": "untouched"}
    assert result.reasons[0].startswith(
        "node1: drain: not drained: the other nodes of pool_llama that are up have weight 0 at lb1, and get "
        "no request; "
    )


def test_a_batch_goes_through_the_steps_together_and_the_rest_follows(world):
    world.options = Options(batch=2)
    result = world.run()
    assert result.code == 0
    calls = [call for call in world.fleet.calls if call.startswith(("drain", "change", "ready"))]
    assert calls.index("drain node2") < calls.index("change node1") < calls.index("change node2")
    assert calls.index("ready node2") < calls.index("drain node3")


def test_of_a_batch_only_the_node_that_fails_goes_back(world):
    world.options = Options(batch=2)
    world.fleet.fails = {"complete llama node2": broken()}
    result = world.run()
    assert outcomes(result) == {"node1": "done", "node2": "restored", "node3": "not begun"}
    assert world.fleet.release == {"node1": "new", "node2": "old", "node3": "old"}


def test_a_run_that_fails_for_a_batch_takes_all_of_it_back(world):
    world.options = Options(batch=2)
    world.fleet.fails = {"change node2": broken()}
    result = world.run()
    assert outcomes(result) == {"node1": "restored", "node2": "restored", "node3": "not begun"}
    assert len(result.reasons) == 2


def test_a_model_that_answered_before_has_to_answer_in_the_former_release_and_others_do_not(world):
    world.plans = {"node1": NodePlan("new-1", ("llama", "mistral"))}
    asked = []

    def completion(balancer, node, model):
        asked.append((world.fleet.release[node.name], model))
        if model == "mistral":
            raise Failure(node.name, "mistral gives no completion", "look")

    world.fleet.completion = completion
    result = world.run()
    assert result.nodes["node1"].outcome == "restored"
    after = asked[asked.index(("new", "mistral")) + 1 :]
    assert after == [("old", "llama")] * 2


def test_the_journal_of_a_dead_node_does_not_stand_in_the_way(world):
    def note(node, text):
        raise Failure(node, "does not answer", "look")

    world.fleet.note = note
    assert world.run().code == 0


def test_a_lock_that_cannot_be_given_back_is_said(world):
    world.fleet.fails = {"unlock lb1": Failure("lb1", "does not answer", "look")}
    result = world.run()
    assert result.outcome == "done"
    assert result.reasons == ["lb1: the lock stays: does not answer; --take-over r1"]


def test_a_damaged_state_is_refused_with_what_to_do(world):
    (world.folder / "prod.json").write_text("{")
    with pytest.raises(Refused, match="is damaged; delete it"):
        world.run()


def test_state_and_history_are_for_the_operator_alone(world):
    world.run()
    for name in ("prod.json", "prod.log"):
        assert (world.folder / name).stat().st_mode & 0o077 == 0
