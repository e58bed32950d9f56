"""The former release of a node: kept before a change, and brought back. One real host; the engine is the stand-in."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import MODEL, STOCK, Node, lab_data, run_pyinfra, write_inventory
from test_interrupted import serves

from quench.facts import STATE_DIRECTORY
from quench.lab import fleet
from quench.lab.state import HostSpec
from quench.operations.commands import remote_script

LAB = "test-release"
FAILED = "systemctl --failed --plain --no-legend"
# deploys/inference.py without what takes longest, since there are four runs.
_DEPLOY = """\
from quench import Gpus, Slices, preflight
from roles.base import base
from roles.firewall import firewall
from roles.logrotate import logrotate
from roles.nginx import nginx
from roles.vllm import vllm

preflight()
base()
logrotate(nginx(vllm(Gpus(), Slices())))
firewall()
"""
RELEASE = f"{STATE_DIRECTORY}/release"
SCRIPT = remote_script("restore_release.sh", STATE_DIRECTORY)


@pytest.fixture(scope="module")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("deploy") / "serving.py"
    path.write_text(_DEPLOY)
    return str(path)


@pytest.fixture(scope="module")
def node(deploy: str) -> Iterator[Node]:
    """A host after one run. It has its packages from the start, as some images do: it saves a minute."""
    fleet.down(LAB, missing_ok=True)
    lab = fleet.up_hosts(LAB, [HostSpec("node1", packages=STOCK)], engine="stand-in")
    try:
        found = Node(lab, "node1")
        run = run_pyinfra(found, "-y", deploy=deploy)
        assert run.code == 0, run.text[-3000:]
        yield found
    finally:
        fleet.down(LAB)


def keep(node: Node, *models: str) -> list[str]:
    return node.root(remote_script("keep_release.sh", STATE_DIRECTORY, " ".join(models))).splitlines()


def starts(node: Node) -> dict[str, str]:
    """When each unit with a stamp was last started."""
    units = node.root(f"ls {STATE_DIRECTORY}/converged | sed -n 's/\\.restart$//p'").split()
    shown = node.root(f"systemctl show -p ActiveEnterTimestampMonotonic --value {' '.join(units)}").split()
    return dict(zip(units, shown, strict=True))


def changed(node: Node, folder: Path, **more: object) -> str:
    """Settings of each kind: a file that is reloaded, one that restarts, and a second model."""
    model = lab_data(node)["vllm_models"][MODEL]
    new = {
        "nginx_body_mebibytes": 9,
        "vllm_drain_seconds": 11,
        "vllm_models": {MODEL: {**model, "max_model_len": 512}, "second": {**model, "port": 8001}},
    }
    return write_inventory(folder, {"*": {**new, **more}})


def test_a_release_comes_back_byte_for_byte_and_what_only_the_newer_one_had_is_gone(
    node: Node, deploy: str, tmp_path: Path
) -> None:
    before, started, failed = node.tree(), starts(node), node.root(FAILED)
    assert serves(node)
    assert keep(node, MODEL) == ["fresh", f"model {MODEL}"]
    run = run_pyinfra(node, "-y", inventory=changed(node, tmp_path), deploy=deploy)
    assert run.code == 0, run.text[-3000:]
    assert node.tree() != before
    assert node.root("systemctl is-active vllm@second.service") == "active"
    # A second attempt, after a crash of the controller, does not keep what is there now.
    assert keep(node, "second") == [f"model {MODEL}"]

    killed_in_a_reload(node)
    assert node.tree() != before
    node.root(SCRIPT)

    assert node.tree() == before
    assert serves(node)
    assert node.root("systemctl is-active vllm@second.service", check=False) == "inactive"
    assert node.root("systemctl show -p LoadState --value vllm@second.service") == "not-found"
    assert node.root("ss -ltnH 'sport = :8001'") == ""
    assert node.root(FAILED) == failed
    now = starts(node)
    assert now[f"vllm@{MODEL}.service"] != started[f"vllm@{MODEL}.service"]
    left_alone = [unit for unit in started if now[unit] == started[unit]]
    assert "nginx.service" in left_alone, "it was reloaded"
    assert len(left_alone) == len(started) - 1
    # And the next run has nothing to do.
    assert run_pyinfra(node, "-y", "--json", deploy=deploy).totals["success"] == 0


def killed_in_a_reload(node: Node) -> None:
    """A restore during which nginx's reload does not end, killed while it waits for that."""
    slow = "[Service]\\nExecReload=\\nExecReload=/bin/sleep 60\\n"
    drop_in = "/run/systemd/system/nginx.service.d"
    node.root(f"mkdir -p {drop_in} && printf '{slow}' >{drop_in}/slow.conf && systemctl daemon-reload")
    node.root(f"timeout --signal=KILL 4 sh -c {shlex.quote(SCRIPT)}", check=False)
    node.root(f"rm -r {drop_in} && systemctl daemon-reload; pkill -KILL -f '[r]estore_release|sleep 6[0]'; true")


def test_what_is_kept_is_for_root_alone_and_nothing_else_is_left_behind(node: Node) -> None:
    assert node.root(f"stat -c '%a %U %n' {RELEASE} {RELEASE}/*").splitlines() == [
        f"700 root {RELEASE}",
        *(f"600 root {RELEASE}/{name}" for name in ("facts", "former.tar", "open", "units")),
    ]


def test_a_release_whose_engine_does_not_start_goes_back(node: Node, deploy: str, tmp_path: Path) -> None:
    before = node.tree()
    model = lab_data(node)["vllm_models"][MODEL]
    # Somebody else has this port, so that the engine ends at once.
    node.root("systemd-run --quiet --unit=taken python3 -m http.server --bind 127.0.0.1 8009")
    dead = write_inventory(tmp_path, {"*": {"vllm_models": {MODEL: {**model, "port": 8009}}}})
    run = run_pyinfra(node, "-y", inventory=dead, deploy=deploy)
    node.root("systemctl stop taken")
    assert run.code == 1
    assert "Keep vllm@" in run.text
    assert not serves(node)
    node.root(SCRIPT)
    assert node.tree() == before
    assert serves(node)
