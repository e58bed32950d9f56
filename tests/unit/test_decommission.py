"""How a node leaves its fleet: steps and their order with a fleet in memory alone, the script in a tree of its own."""

import base64
import json
import os
import shutil
import stat
import subprocess
from dataclasses import replace

import pytest
from click.testing import CliRunner

from quench import ca, cli, decommission_command
from quench.cli import main
from quench.decommission import CACHES, MODELS, Certificate, Decommission, Found, Leaving, Options, Result, parse
from quench.decommission_command import told
from quench.files import CHECKOUT, ManagedFile
from quench.haproxy import Server
from quench.problems import Refused
from quench.rollout_fleet import Failure
from quench.rollout_hosts import SshFleet
from quench.rollout_record import Claim, Record
from quench.secrets import SecretRef
from roles.vllm import VllmSettings
from roles.vllm.files import files as vllm_files
from roles.vllm.files import model_folder
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


# What the script says


def test_the_lines_of_the_script_are_read(tmp_path):
    ca.create(tmp_path, "Test CA")
    certificate, _ = ca.issue(tmp_path, ["node3"])
    encoded = {path.name: base64.b64encode(path.read_bytes()).decode() for path in (certificate, tmp_path / "ca.crt")}
    found, certificates = parse([
        "unit vllm@a.service activating",
        "secret 12 /etc/a b.key",
        "data 3 5000000000 /srv/models",
        "elsewhere /srv/models/a b -> /data/c d",
        "shared nfs /srv/models",
        f"certificate {encoded['node3.crt']} /etc/nginx/quench/tls.crt",
        f"certificate {encoded['ca.crt']} /etc/nginx/quench/balancer-ca.crt",
        "certificate bm9uZQ== /etc/x.crt",
    ])  # fmt: skip
    assert found == [
        Found("unit", "vllm@a.service", "activating"),
        Found("secret", "/etc/a b.key", size=12),
        Found("data", "/srv/models", files=3, size=5_000_000_000),
        Found("elsewhere", "/srv/models/a b", "/data/c d"),
        Found("shared", "/srv/models", "nfs"),
    ]
    (only,) = certificates
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-serial", "-in", str(certificate)], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip().removeprefix("serial=").lstrip("0") == only.serial
    assert only.path == "/etc/nginx/quench/tls.crt"


@pytest.mark.parametrize("line", ["something else", "secret many /x", "data 3", ""])
def test_another_answer_is_an_error(line):
    with pytest.raises(ValueError):
        parse([line])


class FakeHosts:
    def __init__(self, *lines):
        self.lines, self.asked = list(lines), []

    def group(self, name):
        return []

    def root(self, name, command, *, stdin=None, seconds=0):
        self.asked.append(command)
        return self.lines


def site(tmp_path, *lines):
    hosts = FakeHosts(*lines)
    return SshFleet(hosts, [], [], None, tmp_path), hosts


def test_a_node_is_asked_at_once_and_wiped_when_nobody_else_works_on_it(tmp_path):
    made, hosts = site(tmp_path, "unit nginx.service active")
    assert made.remains(NODE) == ([Found("unit", "nginx.service", "active")], [])
    made.wipe(NODE)
    asked, wiped = hosts.asked
    words = f"/var/lib/quench 'base hardening' ssh.service {MODELS} {' '.join(CACHES)}"
    assert asked.startswith("sh -c ") and asked.endswith(f"decommission.sh ask {words}")
    assert wiped.startswith("flock ") and f"decommission.sh wipe {words}" in wiped


def test_an_answer_that_is_none_is_a_failure_of_the_node(tmp_path):
    made, _ = site(tmp_path, "hello")
    with pytest.raises(Failure, match=r"node3: .*: gives no account of what it has: hello"):
        made.remains(NODE)


def test_disks_that_were_told_are_named(tmp_path):
    assert site(tmp_path, "trimmed /", "trimmed /srv/models")[0].wipe(NODE) == ["/", "/srv/models"]


# The script itself

SCRIPT = CHECKOUT / "quench" / "remote" / "decommission.sh"
# systemctl with its units in files, and programs that would reach beyond the tree. `stat -f` says what the test wants.
_PROGRAMS = {
    "systemctl": """\
verb=$1
for unit; do :; done
echo "$verb $unit" >>"$FAKE/calls"
case $verb in
is-active) cat "$FAKE/active/$unit" 2>/dev/null || { echo inactive && exit 3; } ;;
is-enabled) [ -e "$FAKE/enabled/$unit" ] && echo enabled || { echo disabled; exit 1; } ;;
disable) rm -f "$FAKE/enabled/$unit" ;;
stop) [ ! -e "$FAKE/stuck/$unit" ] && rm -f "$FAKE/active/$unit" ;;
esac
""",
    "fstrim": 'echo "fstrim $1" >>"$FAKE/calls"\n',
    "sync": "",
    "stat": 'if [ "$1" = -f ]; then cat "$FAKE/type"; else exec {stat} "$@"; fi\n',
}


class Tree:
    """A node's files in a folder."""

    def __init__(self, folder):
        self.folder, self.fake, self.state = folder, folder / "fake", folder / "state"
        self.models, self.cache, self.home = (
            folder / "srv" / "models",
            folder / "cache" / "vllm",
            folder / "lib" / "vllm",
        )
        for path in ("active", "enabled", "stuck", "bin"):
            (self.fake / path).mkdir(parents=True)
        (self.fake / "type").write_text("xfs\n")
        for name, text in _PROGRAMS.items():
            program = self.fake / "bin" / name
            program.write_text(f"#!/bin/sh\n{text.replace('{stat}', shutil.which('stat'))}")
            program.chmod(0o755)
        for number, unit in enumerate(("ssh.service", "vllm@llama.service", "nginx.service")):
            self.write(f"state/converged/{unit}.restart", "x")
            os.utime(self.state / "converged" / f"{unit}.restart", (number, number))
            self.write(f"fake/active/{unit}", "active\n")
            self.write(f"fake/enabled/{unit}", "")
        self.manage("base", "home/ops/authorized_keys", 0o600)
        self.manage("base-sources", "etc/apt/secret.conf", 0o600)
        self.manage("nginx", "etc/nginx/nginx.conf", 0o644)
        self.manage("nginx", "etc/nginx/tls.key", 0o640)
        self.manage("nginx", "etc/nginx/tls.crt", 0o644)
        self.manage("vllm", "etc/vllm/llama.env", 0o600)
        self.write("srv/models/llama/1/model.safetensors", "weights")
        self.write("cache/vllm/llama/kernel.so", "kernel")
        self.write("lib/vllm/.cache/huggingface/token", "hf_x")
        self.write("state/release/former.tar", "a copy of tls.key")
        self.write("var/log/access.json", "{}")

    def write(self, path, text):
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def manage(self, role, path, mode):
        target = self.write(path, f"content of {path}")
        target.chmod(mode)
        manifest = self.state / "manifest" / role
        manifest.parent.mkdir(parents=True, exist_ok=True)
        with manifest.open("a") as file:
            file.write(f"{'0' * 64} {mode:o} root root {target}\n")

    def run(self, act, roles="base hardening", units="ssh.service"):
        words = [str(self.state), roles, units, str(self.models), str(self.cache), str(self.home)]
        environment = {**os.environ, "FAKE": str(self.fake), "PATH": f"{self.fake / 'bin'}:{os.environ['PATH']}"}
        return subprocess.run(
            ["sh", str(SCRIPT), act, *words], env=environment, capture_output=True, text=True, check=False
        )

    def ask(self):
        done = self.run("ask")
        assert (done.returncode, done.stderr) == (0, "")
        # Paths without the folder, so that they can be compared.
        return [line.replace(f"{self.folder}/", "") for line in done.stdout.splitlines() if "certificate" not in line]

    def wipe(self):
        done = self.run("wipe")
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def calls(self):
        return (self.fake / "calls").read_text().splitlines()

    def all(self):
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if not path.is_dir()}


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


EVERYTHING = [
    "unit nginx.service active",
    "unit vllm@llama.service active",
    "secret 28 etc/nginx/tls.key",
    "secret 29 etc/vllm/llama.env",
    "secret 17 state/release",
    "data 1 7 srv/models",
    "data 1 6 cache/vllm",
    "data 1 4 lib/vllm",
]


def test_the_script_says_what_is_there_and_changes_nothing(tree):
    before = tree.all()
    assert tree.ask() == EVERYTHING
    assert tree.all() - {"fake/calls"} == before
    assert {call.split()[0] for call in tree.calls()} == {"is-active", "is-enabled"}


def test_the_script_takes_it_away_and_nothing_else(tree):
    kept = {path for path in tree.all() if path.startswith(("home", "etc/apt", "etc/nginx/nginx.conf", "var"))}
    assert len(kept) == 4
    tree.wipe()
    assert tree.ask() == []
    left = tree.all()
    assert kept <= left
    gone = ("tls.key", "llama.env", "safetensors", "kernel.so", "token", "former.tar")
    assert [path for path in left if path.endswith(gone)] == []
    assert tree.models.is_dir()
    assert list(tree.models.iterdir()) == []


def test_the_way_in_stays_up_and_the_last_that_was_started_stops_first(tree):
    tree.wipe()
    calls = [call for call in tree.calls() if not call.startswith(("is-", "fstrim"))]
    assert calls == [
        "disable nginx.service", "stop nginx.service", "disable vllm@llama.service", "stop vllm@llama.service",
    ]  # fmt: skip
    assert (tree.fake / "active" / "ssh.service").exists()
    assert (tree.fake / "enabled" / "ssh.service").exists()


def test_a_unit_that_would_run_after_a_boot_or_is_on_its_way_up_is_not_overlooked(tree):
    (tree.fake / "active" / "nginx.service").unlink()
    tree.write("fake/active/vllm@llama.service", "activating\n")
    assert tree.ask()[:2] == ["unit nginx.service enabled", "unit vllm@llama.service activating"]


@pytest.mark.parametrize("state", ["failed\n", "inactive\n"])
def test_a_unit_that_has_failed_and_is_disabled_is_over(tree, state):
    tree.write("fake/active/nginx.service", state)
    (tree.fake / "enabled" / "nginx.service").unlink()
    assert "nginx.service" not in " ".join(tree.ask())


def test_an_engine_that_does_not_stop_keeps_everything(tree):
    before = tree.all() - {"fake/enabled/nginx.service", "fake/active/nginx.service", "fake/enabled/vllm@llama.service"}
    tree.write("fake/stuck/vllm@llama.service", "")
    done = tree.run("wipe")
    assert done.returncode == 1
    assert "vllm@llama.service does not stop, and nothing was removed" in done.stderr
    assert before <= tree.all()


def test_a_wipe_can_be_run_again_wherever_it_was_killed(tree):
    # As a run leaves it that ends before the manifests are written, between two models, or with a file on its way.
    (tree.folder / "etc/nginx/tls.key").unlink()
    tree.write("etc/vllm/llama.env.quench-new", "HF_TOKEN=x")
    tree.write("state/release/keep.AbCdEf/former.tar", "x")
    assert "secret 10 etc/vllm/llama.env.quench-new" in tree.ask()
    tree.wipe()
    assert tree.ask() == []
    tree.wipe()
    assert tree.ask() == []


def test_manifests_name_no_file_that_is_meant_to_be_gone(tree):
    tree.wipe()
    named = {
        path.name: [line.rpartition("/")[2] for line in path.read_text().splitlines()]
        for path in (tree.state / "manifest").iterdir()
    }
    assert named == {
        "base": ["authorized_keys"], "base-sources": ["secret.conf"], "nginx": ["nginx.conf", "tls.crt"], "vllm": [],
    }  # fmt: skip


def test_the_certificate_can_be_read_after_the_wipe_as_well(tree):
    tree.wipe()
    (line,) = [line for line in tree.run("ask").stdout.splitlines() if line.startswith("certificate")]
    assert base64.b64decode(line.split(" ")[1]) == b"content of etc/nginx/tls.crt"
    assert line.endswith("/etc/nginx/tls.crt")


def test_the_folder_of_the_models_may_be_a_link_to_where_there_is_room(tree):
    room = tree.folder / "data" / "room"
    room.parent.mkdir()
    tree.models.rename(room)
    tree.models.symlink_to(room)
    assert "data 1 7 data/room" in tree.ask()
    tree.wipe()
    assert list(room.iterdir()) == []
    assert tree.models.is_symlink()


def test_a_link_to_the_folder_of_the_system_is_not_followed(tree):
    shutil.rmtree(tree.models)
    tree.models.symlink_to("/usr")
    assert [line for line in tree.ask() if "srv/models" in line] == ["elsewhere srv/models -> /usr"]
    tree.wipe()
    assert (tree.folder / "etc").exists()
    assert tree.ask() == ["elsewhere srv/models -> /usr"]


def test_a_link_out_of_the_models_is_told_and_not_followed_until_somebody_has_looked(tree):
    other = tree.write("data/big/model.safetensors", "weights")
    (tree.models / "big one").symlink_to(other.parent)
    (tree.models / "llama" / "blob").symlink_to("1/model.safetensors")
    (tree.models / "nowhere").symlink_to("/nowhere/at/all")
    (tree.cache / "libcuda.so").symlink_to(shutil.which("sh"))
    line = "elsewhere srv/models/big one -> data/big"
    assert [said for said in tree.ask() if said.startswith("elsewhere")] == [line]
    tree.wipe()
    assert tree.ask() == [line]
    assert other.read_text() == "weights"
    (tree.models / "big one").unlink()
    assert tree.ask() == []


@pytest.mark.parametrize("system", ["nfs", "fuseblk", "UNKNOWN (0x1)"])
def test_weights_that_other_hosts_may_use_are_left_alone(tree, system):
    (tree.fake / "type").write_text(f"{system}\n")
    tree.wipe()
    assert [line for line in tree.ask() if "models" in line] == [f"shared {system} srv/models"]
    assert (tree.models / "llama/1/model.safetensors").exists()
    assert not (tree.folder / "etc/nginx/tls.key").exists()


def test_the_disk_is_told_which_blocks_are_free(tree):
    told = tree.wipe()
    assert "trimmed /" in told
    assert [f"trimmed {call.split()[1]}" for call in tree.calls() if call.startswith("fstrim")] == told
    (tree.fake / "bin" / "fstrim").write_text("#!/bin/sh\nexit 1\n")
    assert tree.wipe() == [], "not every disk can"


@pytest.mark.parametrize("empty", ["roles", "units"])
def test_without_anything_that_stays_the_script_does_nothing(tree, empty):
    before = tree.all()
    done = tree.run("wipe", **{empty: ""})
    assert done.returncode == 1
    assert "the way in would go as well" in done.stderr
    assert tree.all() == before


def test_a_host_without_manifests_is_not_taken_for_a_clean_one(tree):
    shutil.rmtree(tree.state / "manifest")
    for act in ("ask", "wipe"):
        done = tree.run(act)
        assert done.returncode == 1
        assert "nobody else knows where the secrets are" in done.stderr
    assert (tree.folder / "etc/nginx/tls.key").exists()


# What it builds on


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o601])
def test_a_file_with_a_secret_is_never_open_to_others_by_which_it_is_known(mode):
    with pytest.raises(ValueError, match="would be open to everyone"):
        ManagedFile("/x", "x", mode=mode, secrets=(SecretRef("env:X"),))


def test_the_folders_are_those_of_the_engines(vllm_data):
    settings = VllmSettings.load("node3", vllm_data)
    assert model_folder("llama", settings.models["llama"]).startswith(f"{MODELS}/")
    text = "\n".join(file.content for file in vllm_files(settings) if isinstance(file, ManagedFile))
    assert "\nCacheDirectory=vllm/llama" in text and "\nStateDirectory=vllm\n" in text
    assert set(CACHES) == {"/var/cache/vllm", "/var/lib/vllm"}


# The command


def result(**changes):
    values = {"outcome": "done", "seconds": 12.0, "stopped": ["nginx.service"], "removed": GOODS[2:]}
    return Result("node3", **(values | changes))


def test_the_report_is_for_people(tmp_path):
    lines = list(told(result(stays=["logs"], todo=["take it out"], trimmed=["/"])))
    assert lines == [
        "node3 is decommissioned, 12 s",
        "  stopped  nginx.service",
        "  removed  /etc/nginx/quench/tls.key (227 B)",
        "  removed  /srv/models (3 files, 140.2 GB)",
        "  trimmed  /: the disk was told which blocks are free",
        "  stays    logs",
        "  to do    take it out",
    ]


class FakeWork:
    """A decommission that asks for confirmation, and is done."""

    def __init__(self, confirm):
        self.confirm = confirm

    def run(self, *, take_over):
        if not self.confirm(GOODS):
            raise Refused([])
        return result()


@pytest.fixture
def command(monkeypatch):
    """`quench decommission prod.py node3`, as a person types it, without a fleet."""
    monkeypatch.setattr(decommission_command, "prepare", lambda *words, confirm, **options: FakeWork(confirm))

    def run(*words, typed=None):
        if typed is not None:
            monkeypatch.setattr(cli, "_terminal", lambda: True)
        return CliRunner().invoke(main, ["decommission", "prod.py", "node3", *words], input=typed)

    return run


def test_without_a_terminal_and_without_yes_it_is_refused(command):
    done = command()
    assert done.exit_code == 1
    assert (
        "node3: confirmation: nobody is there to confirm this: standard input is no terminal; say --yes" in done.output
    )
    assert "is decommissioned" not in done.output


def test_the_name_of_the_node_is_asked_for(command):
    done = command(typed="node3\n")
    assert done.exit_code == 0
    assert "secret    /etc/nginx/quench/tls.key (227 B)" in done.stderr
    assert "node3 leaves its fleet, and loses all of this. This cannot be undone." in done.stderr
    assert done.stdout.startswith("node3 is decommissioned")


@pytest.mark.parametrize("typed", ["node2\n", "y\n", "\n", ""])
def test_another_name_is_none(command, typed):
    done = command(typed=typed)
    assert done.exit_code == 1
    assert "is decommissioned" not in done.output
    assert "Traceback" not in done.output


def test_one_object_of_json_and_nothing_else_on_stdout(command):
    done = command("--yes", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["removed"][0] == {
        "kind": "secret", "name": "/etc/nginx/quench/tls.key", "detail": "", "files": 0, "size": 227,
    }  # fmt: skip


def test_a_refusal_is_json_too(command):
    done = command("--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["outcome"] == "refused"


def test_the_log_is_for_the_operator_alone(world):
    world.run()
    assert stat.S_IMODE((world.folder / "prod.log").stat().st_mode) == 0o600
