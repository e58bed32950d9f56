"""A run that is killed, and the next one. Untouched hosts each time; the engine is the stand-in."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fleets import wait
from support import (
    CHECKOUT,
    MODEL,
    STOCK,
    Node,
    environment,
    hosts_of,
    lab_data,
    pyinfra_command,
    run_pyinfra,
    write_inventory,
)

from quench import ca
from quench.lab import fleet
from quench.lab.state import HostSpec, load

# After how many operations have begun, or after which of them, and how many seconds later. Some take long enough to be
# killed in their midst: packages, the engine's environment, the start of the services.
KILLS: list[tuple[int | str, float]] = [
    ("base | Install chrony", 0.5), ("base | Install chrony", 2.5),
    ("vllm | Install curl", 0.5), ("vllm | Install curl", 1.5),
    (0, 0.0), (1, 0.0), (1, 0.2), (4, 0.1), (5, 0.1), (9, 0.0), (9, 1.0), (10, 0.1), (12, 0.1), (14, 0.1), (15, 0.2),
    (17, 0.1), (18, 0.3), (19, 0.2), (25, 0.1), (26, 0.3), (27, 0.0),
]  # fmt: skip
# The hosts have all packages from the start, as some images do: it saves minutes. These are missing where the operation
# that brings them is to be killed.
MISSING: dict[int | str, str] = {
    "base | Install chrony": "chrony unattended-upgrades",
    "vllm | Install curl": "curl python3-dev python3-venv",
}
# Hosts that are there at the same time, and those that are worked on; the machines have two cores.
HOSTS = 11
AT_ONCE = 4


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, str]]:
    """A lab of untouched hosts with one certificate for all, so that their trees can be compared, and its inventory."""
    for hosts in hosts_of("test-killed", [HostSpec("node1", "debian-12", packages=STOCK)]):
        node = hosts["node1"]
        certificate, key = ca.issue(node.lab.folder / "ca", ["llm.test"])
        tls = {
            "nginx_server_name": "llm.test",
            "nginx_certificate": str(certificate),
            "nginx_private_key": f"file:{key}",
        }
        yield node, write_inventory(tmp_path_factory.mktemp("inventory"), {"*": tls})


def untouched_hosts(first: Node, count: int) -> list[Node]:
    """Hosts that no run has touched, in place of those of the same names."""
    for host in list(load(first.lab.name).hosts):
        if host.name != first.name:
            fleet.remove_host(first.lab.name, host.name)
    specs = [HostSpec(f"node{number}", packages=STOCK) for number in range(2, count + 2)]
    lab = fleet.up_hosts(first.lab.name, specs, engine="stand-in")
    return [Node(lab, spec.name) for spec in specs]


def kill_run(node: Node, inventory: str, operations: int | str, seconds: float) -> bool:
    """Start a run and kill it with SIGKILL. Whether it was still running by then."""
    return kill_command(node, pyinfra_command(inventory, "-y", "--limit", node.name), operations, seconds)


def kill_command(
    node: Node,
    command: list[str],
    operations: int | str,
    seconds: float = 0.0,
    begun_there: Callable[[], bool] = lambda: True,
) -> bool:
    """The same, of any pyinfra command. `begun_there` is what must have come true on the host before the kill."""
    process = subprocess.Popen(
        command, cwd=CHECKOUT, env=environment(node), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    begun = 0
    for line in process.stderr:
        begun += line.startswith("--> Starting operation")
        if isinstance(operations, str):
            if line.startswith(f"--> Starting operation: {operations}"):
                break
        elif begun >= operations and (operations or "Beginning operation run" in line):
            break
    began = wait(begun_there, 60)
    time.sleep(seconds)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.stderr.close()
    process.wait()
    assert began, "what was to be interrupted has not begun on the host"
    return running


def killed_then_healed(node: Node, inventory: str, operations: int | str, seconds: float) -> tuple[bool, str, str]:
    """Whether the kill hit a running run, what the next run said if it failed, and the tree it left."""
    if operations in MISSING:
        node.root(f"DEBIAN_FRONTEND=noninteractive apt-get -q -y purge {MISSING[operations]}")
    running = kill_run(node, inventory, operations, seconds)
    run = run_pyinfra(node, "-y", "--limit", node.name, inventory=inventory)
    if run.code != 0:
        return running, run.text[-3000:], ""
    return running, "", node.tree()


def serves(node: Node) -> bool:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    status, _, _ = node.request("/v1/chat/completions", key=node.key, body=body)
    return status == 200


@pytest.mark.timeout(1200)
def test_the_run_after_a_kill_converges_wherever_the_kill_came(reference: tuple[Node, str]) -> None:
    first, inventory = reference
    run = run_pyinfra(first, "-y", "--limit", first.name, inventory=inventory)
    assert run.code == 0, run.text[-3000:]
    tree = first.tree()
    assert "/etc/nginx/nginx.conf" in tree and ".quench-new" not in tree

    for start in range(0, len(KILLS), HOSTS):
        batch = KILLS[start : start + HOSTS]
        nodes = untouched_hosts(first, len(batch))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            pairs = zip(nodes, batch, strict=True)
            results = list(pool.map(lambda pair: killed_then_healed(pair[0], inventory, *pair[1]), pairs))
        failed = [f"{kill}: {said}" for kill, (_, said, _) in zip(batch, results, strict=True) if said]
        assert not failed, "\n".join(failed)
        # A kill that came too late killed nothing, and would show nothing.
        assert [kill for kill, (running, _, _) in zip(batch, results, strict=True) if not running] == []
        assert [kill for kill, (_, _, found) in zip(batch, results, strict=True) if found != tree] == []
        assert [node.name for node in nodes if not serves(node)] == []


def test_the_host_is_lost_in_the_middle_and_comes_back(reference: tuple[Node, str]) -> None:
    """The other end goes away: every process on the host ends at once, in the midst of a run."""
    first, inventory = reference
    node = Node(load(first.lab.name), "node2")
    node.root("rm -rf /var/lib/quench/manifest/nginx /opt/vllm; systemctl stop nginx.service")
    process = subprocess.Popen(
        pyinfra_command(inventory, "-y", "--limit", node.name), cwd=CHECKOUT, env=environment(node),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "Starting operation: vllm | Build" in line:
            break
    assert wait(lambda: node.root("pgrep -f '[-]m venv'", check=False) != "", 10)
    before = fleet.process(node.lab, node.name)
    node.root("kill -9 -1; systemctl reboot --force", check=False)
    process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) != 0
    assert wait(lambda: fleet.process(node.lab, node.name) not in (0, before), 30)
    for _ in range(60):
        if node.root("systemctl is-system-running", check=False) in ("running", "degraded"):
            break
        time.sleep(0.5)
    run = run_pyinfra(node, "-y", "--limit", node.name, inventory=inventory)
    assert run.code == 0, run.text[-3000:]
    assert node.tree() == first.tree()
    assert serves(node)


def test_a_configuration_that_nginx_refuses_leaves_the_old_one_serving(
    reference: tuple[Node, str], tmp_path: Path
) -> None:
    first, inventory = reference
    node = Node(load(first.lab.name), "node3")
    before = node.tree()
    # The host lacks what the configuration needs: only nginx itself can tell.
    module = "/usr/lib/nginx/modules/ngx_http_js_module.so"
    node.root(f"mv {module} {module}.away")
    changed = write_inventory(tmp_path, {"*": {"nginx_answer_seconds": 123, **tls_of(inventory)}})
    try:
        run = run_pyinfra(node, "-y", "--limit", node.name, inventory=changed)
        assert run.code == 1
        assert "this check refused the new files, and the old ones stay" in run.text
        assert node.tree() == before
        assert serves(node)
    finally:
        node.root(f"mv {module}.away {module}")
    assert run_pyinfra(node, "-y", "--limit", node.name, inventory=changed).code == 0
    assert "proxy_read_timeout 123s" in node.root("cat /etc/nginx/nginx.conf")


def test_a_reload_that_failed_once_is_done_by_the_next_run(reference: tuple[Node, str], tmp_path: Path) -> None:
    first, inventory = reference
    node = Node(load(first.lab.name), "node4")
    assert run_pyinfra(node, "-y", "--limit", node.name, inventory=inventory).code == 0
    # For one run, a reload fails although the files are good.
    node.root(
        "mkdir -p /run/systemd/system/nginx.service.d && printf '[Service]\\nExecReload=\\nExecReload=/bin/false\\n' "
        ">/run/systemd/system/nginx.service.d/broken.conf && systemctl daemon-reload"
    )
    workers = "pgrep -P $(systemctl show -p MainPID --value nginx.service) | sort"
    before = node.root(workers)
    changed = write_inventory(tmp_path, {"*": {"nginx_body_mebibytes": 9, **tls_of(inventory)}})
    failed = run_pyinfra(node, "-y", "--limit", node.name, inventory=changed)
    assert failed.code == 1
    assert "client_max_body_size 9m" in node.root("cat /etc/nginx/nginx.conf")
    assert node.root(workers) == before, "the old workers serve on"
    node.root("rm -r /run/systemd/system/nginx.service.d && systemctl daemon-reload")
    again = run_pyinfra(node, "-y", "--json", "--limit", node.name, inventory=changed)
    assert again.code == 0, again.text[-3000:]
    # No file differed, and yet nginx was reloaded: the state counts, not the event.
    assert [step["name"] for step in run_results(again.out) if step["success"]] == [
        "nginx | Keep nginx.service running with its present configuration"
    ]
    assert node.root(workers) != before
    assert run_pyinfra(node, "-y", "--json", "--limit", node.name, inventory=changed).totals["success"] == 0


def test_a_port_that_somebody_else_has_is_a_failed_start_with_the_reason(reference: tuple[Node, str]) -> None:
    _, inventory = reference
    node = Node(load(reference[0].lab.name), "node5")
    node.root(
        "systemctl stop nginx.service; systemd-run --quiet --unit=other python3 -m http.server 443 --directory /srv"
    )
    assert wait(lambda: node.root("ss -ltnH 'sport = :443'") != "", 10)
    run = run_pyinfra(node, "-y", "--limit", node.name, inventory=inventory)
    node.root("systemctl stop other.service")
    assert run.code == 1
    assert "Address already in use" in run.text
    assert run_pyinfra(node, "-y", "--limit", node.name, inventory=inventory).code == 0
    assert serves(node)


def test_a_file_that_was_edited_by_hand_is_put_back_and_taken_up(reference: tuple[Node, str]) -> None:
    first, inventory = reference
    node = Node(load(first.lab.name), "node5")
    node.root("sed -i 's/client_header_timeout 15s/client_header_timeout 16s/' /etc/nginx/nginx.conf")
    node.root("systemctl reload nginx.service")
    run = run_pyinfra(node, "-y", "--json", "--limit", node.name, inventory=inventory)
    assert run.code == 0, run.text[-3000:]
    changed = [step["name"] for step in run_results(run.out) if step["success"]]
    assert len(changed) == 2, changed  # the file, and the reload that it needs
    assert node.tree() == first.tree()


def test_a_model_that_is_no_longer_wanted_is_stopped_and_its_files_go(
    reference: tuple[Node, str], tmp_path: Path
) -> None:
    first, inventory = reference
    node = Node(load(first.lab.name), "node6")
    model = lab_data(node)["vllm_models"][MODEL]
    both = {MODEL: model, "second": {**model, "port": 8001}}
    more = write_inventory(tmp_path, {"*": {"vllm_models": both, **tls_of(inventory)}})
    assert run_pyinfra(node, "-y", "--limit", node.name, inventory=more).code == 0
    assert node.root("systemctl is-active vllm@second.service") == "active"
    assert run_pyinfra(node, "-y", "--limit", node.name, inventory=inventory).code == 0
    assert node.root("systemctl is-active vllm@second.service", check=False) == "inactive"
    assert node.root("ls /etc/vllm") == f"{MODEL}.env\n{MODEL}.yaml"
    assert node.root("ss -ltnH 'sport = :8001'") == ""
    assert serves(node)


def test_a_host_without_a_mirror_of_its_own_is_asked_for_its_files_all_the_same(
    reference: tuple[Node, str], tmp_path: Path
) -> None:
    """As a server that fetches from the distribution. Its packages are there; only the sources change."""
    first, inventory = reference
    node = Node(load(first.lab.name), "node7")
    relaxed = {"firewall_relaxations": {"world-out": "packages come from the distribution"}}
    plain = write_inventory(
        tmp_path,
        {"*": {**tls_of(inventory), **relaxed}, "remove": ["base_apt_mirror", "base_apt_security_mirror"]},
    )
    run = run_pyinfra(node, "-y", "--limit", node.name, inventory=plain)
    assert run.code == 0, run.text[-3000:]
    assert node.root("ls /etc/apt/apt.conf.d/10quench-sources", check=False) == ""
    again = run_pyinfra(node, "-y", "--json", "--limit", node.name, inventory=plain)
    assert again.totals["success"] == 0
    assert run_pyinfra(node, "-y", "--limit", node.name, inventory=inventory).code == 0


def test_a_changed_checksum_under_the_same_revision_is_refused(reference: tuple[Node, str], tmp_path: Path) -> None:
    first, inventory = reference
    node = Node(load(first.lab.name), "node7")
    model = {**lab_data(node)["vllm_models"][MODEL], "sha256": "0" * 64}
    changed = write_inventory(tmp_path, {"*": {"vllm_models": {MODEL: model}, **tls_of(inventory)}})
    run = run_pyinfra(node, "-y", "--limit", node.name, inventory=changed)
    assert run.code == 1
    assert "name a new revision" in run.text
    assert serves(node)


def tls_of(inventory: str) -> dict[str, str]:
    """The certificate that an inventory of these tests sets for all hosts."""
    import ast

    line = next(line for line in Path(inventory).read_text().splitlines() if line.startswith("_CHANGES = "))
    return dict(ast.literal_eval(line.removeprefix("_CHANGES = "))["*"])


def run_results(out: str) -> list[dict[str, list[str]]]:
    import json

    return list(json.loads(out)["results"]["operations"])
