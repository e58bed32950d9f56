"""What a rollout says to hosts, and what it makes of their answers."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from pyinfra.api import Inventory
from pyinfra.api.exceptions import ConnectError

from quench import rollout_hosts
from quench.files import CHECKOUT
from quench.haproxy import Server
from quench.problems import Refused
from quench.rollout_fleet import Failure, Kept
from quench.rollout_hosts import Hosts, Prompt, SshFleet, load_prompts, natural, pyinfra_command, reason, ssh_config
from quench.rollout_record import Claim

CLAIM = Claim("r1", "anna", "desk", "2026-11-20T10:00:00Z")
OTHER = Claim("r2", "bert's", "laptop", "2026-11-20T11:00:00Z")
NODE = Server("pool_llama", "node1", "DRAIN", "L7OK", address="10.0.30.11:443")
LOCK = CHECKOUT / "quench" / "remote" / "rollout_lock.sh"


class FakeHosts:
    """Hosts that answer a command by a part of it."""

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def group(self, name):
        return {"balancers": ["lb1"], "inference": ["node1"]}[name]

    def data(self, name):
        return {"ssh_hostname": "10.0.30.11", "ssh_user": "ops"}

    def root(self, name, command, *, stdin=None, seconds=0):
        self.asked.append((name, command, stdin))
        for part, lines in self.answers.items():
            if part in command:
                if isinstance(lines, Exception):
                    raise lines
                return lines.pop(0) if lines and isinstance(lines[0], list) else lines
        return []


@pytest.fixture
def fleet(tmp_path):
    def make(prompts=(), change=("true",), **answers):
        hosts = FakeHosts(**answers)
        return SshFleet(hosts, list(change), list(prompts), None, tmp_path / "runs"), hosts

    return make


def answer(text, status="200"):
    return [json.dumps({"choices": [{"message": {"content": text}}]}), status]


def test_haproxy_is_asked_by_its_socket(fleet):
    made, hosts = fleet()
    made.set_state("lb1", [NODE], "drain")
    (_, asked, _), (_, kept, _) = hosts.asked
    assert asked == "echo 'set server pool_llama/node1 state drain' | socat -t 5 - /run/haproxy/admin.sock"
    # A HAProxy that starts anew must not send requests to a node in work.
    assert kept.endswith("/usr/local/lib/quench/haproxy-server-state")


def test_a_socket_that_may_not_drain_is_a_failure(fleet):
    made, _ = fleet(socat=["Permission denied", ""])
    with pytest.raises(Failure, match="does not set drain: Permission denied; the admin socket must have the level"):
        made.set_state("lb1", [NODE], "drain")


class GroupOfTwo(FakeHosts):
    def group(self, name):
        return ["lb1", "lb2"]

    def is_there(self, name, port):
        self.asked.append((name, port))
        return True


def test_a_balancer_that_is_left_out_is_none_of_the_fleet_and_is_asked_at_both_its_ports(tmp_path):
    hosts = GroupOfTwo()
    made = SshFleet(hosts, [], [], None, tmp_path, without=["lb2"])
    assert (made.balancers, made.without) == (["lb1"], ["lb2"])
    assert made.is_there("lb2")
    assert hosts.asked == [("lb2", 443)]


@pytest.mark.parametrize("there", ["ssh", "haproxy", "jump host", "nothing"])
def test_a_host_answers_if_anything_is_there(monkeypatch, there):
    with (
        socket.create_server(("127.0.0.1", 0)) as ssh,
        socket.create_server(("127.0.0.1", 0)) as haproxy,
    ):
        ports = {"ssh": ssh.getsockname()[1], "haproxy": haproxy.getsockname()[1]}
        for name, one in (("ssh", ssh), ("haproxy", haproxy)):
            if name != there:
                one.close()
        data = {"ssh_hostname": "127.0.0.1", "ssh_port": ports["ssh"]}
        hosts = Hosts(Inventory(([("lb2", data)], {})))

        def connect(host):
            assert host.name == "lb2"
            if there != "jump host":
                raise ConnectError("nobody is there")

        monkeypatch.setattr(rollout_hosts, "connect_once", connect)
        assert hosts.is_there("lb2", ports["haproxy"]) is (there != "nothing")


def test_an_answer_that_is_no_table_is_a_failure_of_the_balancer(fleet):
    made, _ = fleet(socat=["nonsense"])
    with pytest.raises(Failure, match="lb1: rollout: HAProxy gives no statistics: nonsense"):
        made.servers("lb1")


def test_processes_from_before_a_reload_are_those_beside_the_one_that_answers(fleet, tmp_path, monkeypatch):
    script = "sleep 60 & echo $!; sleep 60 & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as main:
        now, former = (int(main.stdout.readline()) for _ in range(2))
        program(tmp_path / "systemctl", f"echo {main.pid}")
        program(tmp_path / "socat", f"printf 'Name: HAProxy\\nPid: {now}\\nUptime: 0d\\n'")
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        made, hosts = fleet()
        hosts.root = lambda name, command: subprocess.check_output(["sh", "-c", command], text=True).splitlines()
        try:
            assert made.former("lb1") == 1
            os.kill(former, signal.SIGKILL)
            assert soon(lambda: made.former("lb1") == 0)
        finally:
            os.kill(now, signal.SIGKILL)


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_what_is_kept_is_read(fleet):
    made, hosts = fleet(keep_release=["fresh", "plan abc", "model llama", "model qwen"])
    assert made.keep("node1", ["llama", "qwen"]) == Kept("abc", ("llama", "qwen"), fresh=True)
    assert hosts.asked[0][1].startswith("flock ")
    assert "'llama qwen'" in hosts.asked[0][1]


def test_a_release_that_was_kept_before_is_known(fleet):
    made, _ = fleet(keep_release=["model llama"])
    assert made.keep("node1", []) == Kept("", ("llama",), fresh=False)


def test_a_model_is_asked_with_the_name_and_the_certificate_of_a_balancer_and_the_question_on_stdin(fleet):
    made, hosts = fleet(ask_model=answer("yes"))
    made.completion("lb1", NODE, "llama")
    ((host, command, stdin),) = hosts.asked
    assert host == "lb1"
    tail = "10.0.30.11:443 /etc/haproxy/quench/node.crt /etc/haproxy/quench/nodes-ca.crt /v1/chat/completions llama"
    assert tail in command
    assert json.loads(stdin)["model"] == "llama"
    assert "Say yes" not in command


def test_a_model_that_does_not_chat_is_asked_otherwise(fleet):
    made, hosts = fleet(ask_model=[["{}", "404"], ["{}", "400"], ['{"data": []}', "200"]])
    made.completion("lb1", NODE, "embedder")
    assert "/v1/embeddings" in hosts.asked[-1][1]


def test_a_model_that_fails_is_a_failure_of_its_node(fleet):
    made, hosts = fleet(ask_model=["{}", "502"])
    with pytest.raises(Failure, match=r"node1: .*: llama gives no completion to lb1: status 502; see"):
        made.completion("lb1", NODE, "llama")
    assert len(hosts.asked) == 1


def test_a_node_that_a_balancer_does_not_reach_is_a_failure_of_the_node(fleet):
    made, _ = fleet(ask_model=Failure("lb1", "curl: (7) Failed to connect", "log in"))
    with pytest.raises(Failure, match=r"lb1 gets no answer of llama there: curl: \(7\) Failed"):
        made.completion("lb1", NODE, "llama")


@pytest.mark.parametrize(
    ("prompt", "text", "good"),
    [
        ({"expect": "Paris"}, " Paris\n", True),
        ({"expect": "Paris"}, "Paris, of course", False),
        ({"matches": "(?i)paris"}, "It is PARIS.", True),
        ({"matches": "^Paris$"}, "London", False),
    ],
)
def test_a_prompt_has_its_answer(fleet, prompt, text, good):
    made, hosts = fleet([Prompt(prompt="The capital of France?", **prompt)], ask_model=answer(text))
    if good:
        made.prompts("lb1", NODE, ["llama"])
        assert json.loads(hosts.asked[0][2]).items() >= {"temperature": 0, "max_tokens": 64}.items()
    else:
        with pytest.raises(Failure) as failure:
            made.prompts("lb1", NODE, ["llama"])
        # A prompt may be the house's own, and its answer too.
        assert "France" not in str(failure.value)
        assert text not in str(failure.value)
        assert "llama does not answer prompt 1 as it should" in str(failure.value)


def test_a_prompt_for_a_model_that_the_node_does_not_serve_is_left_out(fleet):
    made, hosts = fleet([Prompt(prompt="?", expect="!", model="qwen")])
    made.prompts("lb1", NODE, ["llama"])
    assert hosts.asked == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("prompt: x", "is no list of prompts"),
        ("[]", "is no list of prompts"),
        ("- prompt: x", "give one of expect and matches"),
        ("- {prompt: x, expect: a, matches: b}", "give one of expect and matches"),
        ("- {prompt: x, matches: '('}", "is no regular expression"),
        ("- {prompt: x, expect: 5}", "expect: Input should be a valid string"),
        ("- {prompts: x, expect: a}", "prompt: Field required"),
        ("- {", "is no YAML"),
    ],
)
def test_a_wrong_file_of_prompts_is_refused_in_one_line(tmp_path, text, what):
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    with pytest.raises(Refused) as refused:
        load_prompts(path)
    (problem,) = refused.value.problems
    assert what in str(problem)
    assert "\n" not in str(problem)


def test_prompts_are_read(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text("- {prompt: hello, matches: h}\n- {prompt: 1+1, expect: '2', model: llama, max_tokens: 2}\n")
    assert [prompt.model for prompt in load_prompts(path)] == [None, "llama"]


def locked(state, claim, take_over=""):
    words = ["sh", str(LOCK), str(state), claim.id, claim.to_json(), take_over]
    return Claim.from_json(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def test_the_lock_is_taken_kept_and_taken_over_only_by_name(tmp_path):
    state = tmp_path / "quench"
    assert locked(state, CLAIM) == CLAIM
    assert locked(state, CLAIM) == CLAIM
    assert locked(state, OTHER) == CLAIM
    assert locked(state, OTHER, take_over="r3") == CLAIM
    assert locked(state, OTHER, take_over="r1") == OTHER
    assert locked(state, CLAIM) == OTHER


def test_of_two_that_come_at_once_one_has_the_lock(tmp_path):
    claims = [Claim(f"r{number}", "anna", "desk", "now") for number in range(8)]
    found = []
    threads = [threading.Thread(target=lambda claim=claim: found.append(locked(tmp_path, claim))) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_lock_that_cannot_be_read_is_held_by_somebody_and_can_be_taken_over(tmp_path):
    (tmp_path / "rollout.lock").write_text("{\n")
    assert locked(tmp_path, CLAIM).id == "unknown"
    assert locked(tmp_path, CLAIM, take_over="unknown") == CLAIM
    assert locked(tmp_path, OTHER, take_over="unknown") == CLAIM


def test_units_that_are_not_active_are_named_with_their_state(fleet):
    made, _ = fleet(converged=["vllm@llama.service failed", "nginx.service activating"])
    assert made.units("node1") == [("vllm@llama.service", "failed"), ("nginx.service", "activating")]


def test_a_change_is_the_operators_own_run_and_its_output_is_kept(fleet, tmp_path):
    made, _ = fleet(change=[sys.executable, "-c", "import sys; print(sys.argv[1:])"])
    made.change(["node1", "node2"])
    (log,) = (tmp_path / "runs").iterdir()
    assert log.read_text() == "['--limit', 'node1', '--limit', 'node2', '-y']\n"
    assert log.stat().st_mode & 0o077 == 0


def test_a_change_that_fails_says_why_in_one_line(fleet):
    script = "print('[node1] quench: this check refused the new files'); print('--> error'); raise SystemExit(1)"
    made, _ = fleet(change=[sys.executable, "-c", script])
    with pytest.raises(Failure, match=r"change ended with 1: \[node1\] quench: this check refused the new files;"):
        made.change(["node1"])


# As the command does it, in a process of its own: pyinfra's command line patches the standard library for gevent.
_CONTROLLER = """\
import sys
import pyinfra_cli.inventory
from pathlib import Path
from quench.interrupt import in_order
from quench.rollout_hosts import SshFleet

class Hosts:
    def group(self, name):
        return []

try:
    with in_order():
        SshFleet(Hosts(), sys.argv[2:], [], None, Path(sys.argv[1])).change(["node1"])
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
_RUN = """\
import os, pathlib, signal, sys, time
def end(*_):
    pathlib.Path(sys.argv[1], "ended").write_text("yes")
    raise SystemExit(1)
signal.signal(signal.SIGINT, end)
beginning = pathlib.Path(sys.argv[1], "beginning")
beginning.write_text(str(os.getpid()))
beginning.rename(beginning.with_name("begun"))
time.sleep(120)
"""


def test_ctrl_c_ends_the_run_before_the_rollout(tmp_path):
    words = [sys.executable, "-c", _CONTROLLER, str(tmp_path / "runs"), sys.executable, "-c", _RUN, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=CHECKOUT) as process:
        assert soon((tmp_path / "begun").exists)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert out == "interrupted\n"
    assert (tmp_path / "ended").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not kill a child with its parent")
def test_a_run_does_not_outlive_a_rollout_that_is_killed(tmp_path):
    words = [sys.executable, "-c", _CONTROLLER, str(tmp_path / "runs"), sys.executable, "-c", _RUN, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=CHECKOUT) as process:
        assert soon((tmp_path / "begun").exists)
        run = int((tmp_path / "begun").read_text())
        os.kill(run, 0)
        process.kill()
    assert soon(lambda: gone(run))
    assert not (tmp_path / "ended").exists(), "it was not asked, it was killed"


def gone(pid):
    """Whether a process has ended, be it that nobody has taken note yet."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def soon(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_where_no_setpriv_is_a_run_starts_without_it(fleet, tmp_path, monkeypatch):
    for help_text in ("--reuid <uid>", None):
        if help_text:
            program(tmp_path / "setpriv", f"echo '{help_text}'")
        monkeypatch.setenv("PATH", str(tmp_path))
        made, _ = fleet(change=[sys.executable, "-c", "pass"])
        made.change(["node1"])
        (tmp_path / "setpriv").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("a\n\x1b[31m[node1] quench: no\x1b[0m\n[node1] Error: executed 0 commands\n--> pyinfra error\n", "quench: no"),
        ("node1: nginx_port: is taken; give another\n", "node1: nginx_port: is taken; give another"),
        ("[node1] gone\nNo hosts remaining!\n", "[node1] gone"),
        ("FAILED tests/host/test_a.py::test_b - no\n1 failed in 2.00s\n", "test_a.py::test_b - no"),
        ("x\n\n", "x"),
        ("", "no output"),
    ],
)
def test_the_line_of_a_log_that_says_most(tmp_path, log, said):
    path = tmp_path / "log"
    path.write_text(log)
    assert reason(path, ["node1"]).endswith(said)


@pytest.mark.parametrize("named", [True, False])
def test_the_checks_know_the_way_that_pyinfra_knows(tmp_path, monkeypatch, named):
    """Over a bastion, which is a host of its own in the operator's file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("ssh.conf" if named else ".ssh/config")
    path.parent.mkdir(exist_ok=True)
    path.write_text("Host node1\n  ProxyJump bastion\n  User nobody\nHost bastion\n  User jump\n  HostName 10.0.0.9\n")
    config = tmp_path / "config"
    data = {"ssh_hostname": "10.0.0.1", "ssh_user": "ops", **({"ssh_config_file": "ssh.conf"} if named else {})}
    config.write_text(ssh_config("node1", data, "/run/s"))

    def says(host):
        done = subprocess.run(["ssh", "-G", "-F", config, host], capture_output=True, text=True, check=True)
        return dict(line.split(" ", 1) for line in done.stdout.splitlines())

    assert {key: says("node1")[key] for key in ("user", "hostname", "proxyjump", "controlpath")} == {
        "user": "ops", "hostname": "10.0.0.1", "proxyjump": "bastion", "controlpath": "/run/s"
    }  # fmt: skip
    assert (says("bastion")["user"], says("bastion")["hostname"]) == ("jump", "10.0.0.9")


def test_the_configuration_of_ssh_follows_the_inventory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    data = {"ssh_hostname": "10.0.0.1", "ssh_user": "ops", "ssh_key": "k", "ssh_known_hosts_file": "h", "platform": "x"}
    assert ssh_config("node1", data, "/run/s") == (
        "Host node1\n  HostName 10.0.0.1\n  User ops\n  IdentityFile k\n  UserKnownHostsFile h\n"
        "  ControlPath /run/s\n  LogLevel ERROR\n"
    )


def test_hosts_are_sorted_as_people_do():
    assert sorted(["node10", "node2", "a1.b", "node1"], key=natural) == ["a1.b", "node1", "node2", "node10"]


def test_the_run_is_the_one_of_the_operator():
    words = pyinfra_command("inventories/prod.py", ["deploys/inference.py"], ["data"])
    assert words[0].endswith("pyinfra")
    assert words[1:] == ["inventories/prod.py", "deploys/inference.py", "--group-data", "data"]
