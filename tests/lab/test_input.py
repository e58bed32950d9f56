"""Bad input: one clear line per problem, all of them together, an exit code that is not 0, and nothing changed."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import CHECKOUT, DEPLOY, MODEL, Node, Run, environment, lab_data, run_pyinfra, run_quench, write_inventory

from quench import ca
from quench.facts import REBOOT_UNIT


def changed_model(node: Node, **changes: Any) -> dict[str, Any]:
    model = {**lab_data(node)["vllm_models"][MODEL], **changes}
    return {key: value for key, value in model.items() if value is not None}


def quench_check(node: Node, inventory: str) -> Run:
    return run_quench(node, "check", inventory, DEPLOY, timeout=60)


def problem_lines(run: Run) -> list[str]:
    return [line.strip() for line in run.text.splitlines() if line.startswith("  node")]


@pytest.fixture
def untouched(stand_in_node: Node) -> Node:
    """A serving host whose tree must be the same after the run."""
    return stand_in_node


# Changed keys, and what the one line must say: host, key, what is wrong, what to do.
KNOWN_OFFLINE = {
    "an unknown key": (
        {"nginx_prot": 443},
        ["node1: nginx_prot: unknown key; did you mean nginx_port?"],
    ),
    "a key of no role": (
        {"ngnix_port": 443},
        ["node1: ngnix_port: no role reads this key; did you mean nginx_port?"],
    ),
    "a wrong type": (
        {"nginx_port": "443"},
        ["node1: nginx_port: '443': input should be a valid integer; see docs/reference/nginx.md"],
    ),
    "a missing secret": (
        {"vllm_hf_token": "env:QUENCH_NO_SUCH_VARIABLE"},
        ["node1: vllm_hf_token: environment variable QUENCH_NO_SUCH_VARIABLE is not set; set it where the run"],
    ),
    "an unreadable secret": (
        {"nginx_private_key": "file:/nowhere/tls.key"},
        ["node1: nginx_private_key: /nowhere/tls.key cannot be read: No such file or directory; set it"],
    ),
    "a secret in plain": (
        {"vllm_hf_token": "hf_plainPLAINplain"},
        ["node1: vllm_hf_token: must be a reference to a secret, not the secret"],
    ),
    "a zone that is the world": (
        {"firewall_zones": {"management": ["10.0.0.0/8"], "app": ["0.0.0.0/0"]}},
        ["node1: firewall_zones: 0.0.0.0/0 of app is no part of a house; name 'world' in a role's zones"],
    ),
    "a port that is open to the world": (
        {"nginx_client_zones": ["world"]},
        ["node1: firewall_relaxations: nginx opens port 443 to the whole world: clients of the models; name zones"],
    ),
    "logins by password without a reason": (
        {"hardening_relaxations": {"password-login": ""}},
        ["node1: hardening_relaxations: password-login has no reason; say why, in a few words, for the auditor"],
    ),
    "a CA that is asked without TLS": (
        {"acme_directory": "http://ca.example.org/directory", "acme_names": ["llm.test"]},
        ["node1: acme_directory: 'http://ca.example.org/directory': string should match pattern"],
    ),
    "several at once": (
        {"nginx_prot": 443, "vllm_drain_seconds": -1, "base_updates": "weekly", "logrotate_keep_days": "365"},
        ["node1: base_updates: ", "node1: logrotate_keep_days: ", "node1: nginx_prot: ", "node1: vllm_drain_seconds: "],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN_OFFLINE)
def test_it_is_refused_before_connecting(name: str, untouched: Node, tmp_path: Path) -> None:
    changes, expected = KNOWN_OFFLINE[name]
    refused_alike(untouched, tmp_path, {"*": changes}, expected)


def refused_alike(node: Node, folder: Path, changes: dict[str, Any], expected: list[str]) -> None:
    """`quench check` and `pyinfra` say the same lines, end with 1, connect to nothing and change nothing."""
    before = node.tree()
    inventory = write_inventory(folder, changes)
    for run in (quench_check(node, inventory), run_pyinfra(node, "-y", inventory=inventory)):
        assert run.code == 1, run.text
        lines = problem_lines(run)
        assert len(lines) == len(expected), run.text
        for line, start in zip(lines, expected, strict=True):
            assert line.startswith(start), line
        assert "Traceback" not in run.text
        assert "Connected" not in run.text
        assert "hf_plain" not in run.text
    assert node.tree() == before


def test_two_models_on_one_port(untouched: Node, tmp_path: Path) -> None:
    models = {"a": changed_model(untouched), "b": changed_model(untouched)}
    expected = ["node1: vllm_models: models a and b are both on port 8000; give each its own port"]
    refused_alike(untouched, tmp_path, {"*": {"vllm_models": models}}, expected)


def test_two_models_on_one_gpu(untouched: Node, tmp_path: Path) -> None:
    models = {"a": changed_model(untouched, gpus=[0]), "b": changed_model(untouched, gpus=[0, 1], port=8001)}
    expected = ["node1: vllm_models: models a and b are both on GPU 0; give each GPU to one model"]
    refused_alike(untouched, tmp_path, {"*": {"vllm_models": models}}, expected)


def test_an_expired_certificate(untouched: Node, tmp_path: Path) -> None:
    ca.create(tmp_path, "Old CA")
    certificate, key = ca.issue(tmp_path, ["old.test"], days=0)
    day = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    tls = {
        "nginx_server_name": "old.test",
        "nginx_certificate": str(certificate),
        "nginx_private_key": f"file:{key}",
    }
    expected = [f"node1: nginx_certificate: {certificate} expired on {day.date()}; renew it"]
    refused_alike(untouched, tmp_path, {"*": tls}, expected)


def test_problems_of_all_hosts_come_together(untouched: Node, tmp_path: Path) -> None:
    added = {
        **printable(lab_data(untouched)),
        "nginx_prot": 1,
        "nginx_port": "443",
    }
    changes = {"*": {"vllm_drain_seconds": "x"}, "add": [("node7", added)]}
    expected = ["node1: vllm_drain_seconds: ", "node7: nginx_port: ", "node7: nginx_prot: "]
    refused_alike(untouched, tmp_path, changes, expected)


def printable(data: dict[str, Any]) -> dict[str, Any]:
    """Host data that can be written into an inventory file."""
    return {key: value for key, value in data.items() if key != "ssh_paramiko_connect_kwargs"}


def test_a_missing_model_folder(untouched: Node, tmp_path: Path) -> None:
    models = {MODEL: changed_model(untouched, source=None, sha256=None, revision="7")}
    run = only_the_host_knows(untouched, tmp_path, {"*": {"vllm_models": models}})
    assert problem_lines(run) == [
        f"node1: vllm_models.{MODEL}: /srv/models/{MODEL}/7 is not on the host; "
        "copy the model there, or set its source and sha256"
    ]


def test_a_platform_that_differs_from_the_hosts(untouched: Node, tmp_path: Path) -> None:
    run = only_the_host_knows(untouched, tmp_path, {"*": {"platform": "debian-13"}})
    assert problem_lines(run) == [
        "node1: platform: is 'debian-13', but the host is 'debian-12'; set platform = 'debian-12' for this host"
    ]


def test_a_zone_that_the_host_is_not_in(untouched: Node, tmp_path: Path) -> None:
    (line,) = problem_lines(only_the_host_knows(untouched, tmp_path, {"*": {"firewall_zone": "storage"}}))
    assert line.startswith(
        f"node1: firewall_zone: is 'storage', but none of the host's addresses is there: {untouched.address}"
    )
    assert line.endswith("; set firewall_zone = 'inference'")


def test_no_sudo(untouched: Node, tmp_path: Path) -> None:
    untouched.root(
        "id plain >/dev/null 2>&1 || { useradd -m plain; cp -r /home/install/.ssh /home/plain/; "
        "chown -R plain: /home/plain; }"
    )
    run = only_the_host_knows(untouched, tmp_path, {"*": {"ssh_user": "plain"}})
    assert problem_lines(run) == [
        "node1: ssh_user: plain may not use sudo without a password; allow it in sudoers: plain ALL=(ALL) NOPASSWD: ALL"
    ]


def test_a_host_that_a_killed_run_told_to_reboot(untouched: Node, tmp_path: Path) -> None:
    untouched.root(f"systemd-run --quiet --unit={REBOOT_UNIT} --on-active=1h true")
    try:
        run = only_the_host_knows(untouched, tmp_path, {})
    finally:
        untouched.root(f"systemctl stop {REBOOT_UNIT}.timer")
    assert problem_lines(run) == [
        "node1: ssh_hostname: the host is about to reboot; wait until it is back, and run again"
    ]


def test_an_unreachable_host_stops_the_run_for_all(untouched: Node, tmp_path: Path) -> None:
    data = lab_data(untouched)
    # Nothing listens there: the controller's own address, on a port that is closed.
    lost = {**printable(data), "ssh_hostname": untouched.lab.gateway, "ssh_port": 9}
    changes = {"add": [("node8", lost)], "*": {"nginx_answer_seconds": 77}}
    run = only_the_host_knows(untouched, tmp_path, changes)
    (line,) = problem_lines(run)
    assert line.startswith(f"node8: ssh_hostname: {untouched.lab.gateway} port 9 does not answer: Connection refused; ")
    assert line.endswith("--exclude node8")


def test_a_missing_login_key(untouched: Node, tmp_path: Path) -> None:
    run = only_the_host_knows(untouched, tmp_path, {"*": {"ssh_key": "/nowhere/key"}})
    assert problem_lines(run) == ["node1: ssh_key: /nowhere/key: no such file; correct the path, or put the file there"]


def only_the_host_knows(node: Node, folder: Path, changes: dict[str, Any]) -> Run:
    before = node.tree()
    run = run_pyinfra(node, "-y", inventory=write_inventory(folder, changes))
    assert run.code == 1, run.text
    assert "Traceback" not in run.text
    assert node.tree() == before
    return run


def test_a_mirror_with_a_password_in_its_address(untouched: Node, tmp_path: Path) -> None:
    changes = {"*": {"vllm_index_url": "https://me:canaryPASSWORD@mirror.example.org/simple"}}
    before = untouched.tree()
    run = run_pyinfra(untouched, "-y", inventory=write_inventory(tmp_path, changes))
    assert run.code == 1
    assert problem_lines(run)[0].startswith("node1: vllm_index_url: string should match pattern")
    assert "canaryPASSWORD" not in run.text
    assert untouched.tree() == before


def test_an_inventory_that_is_not_there(untouched: Node) -> None:
    run = run_pyinfra(untouched, "-y", inventory="inventories/prd.py")
    assert run.code == 1
    assert "inventories/prd.py: inventory: no such file" in run.text


def test_a_limit_that_matches_nothing(untouched: Node) -> None:
    run = run_pyinfra(untouched, "-y", "--limit", "nosuchhost")
    assert run.code == 1
    assert "no host is chosen" in run.text


def test_a_run_from_another_folder_is_refused(untouched: Node, tmp_path: Path) -> None:
    """There, config.py is not read, and neither sudo nor the checks would be in force."""
    pyinfra = str(Path(sys.executable).with_name("pyinfra"))
    command = [pyinfra, str(CHECKOUT / "inventories/lab.py"), str(CHECKOUT / DEPLOY), "-y"]
    env = {**environment(untouched), "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "config.py: was not read; run pyinfra in the checkout's top folder" in done.stdout + done.stderr
