"""What a decommission makes of an inventory, before it asks any host."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from quench import ca
from quench.cli import main
from quench.decommission import Decommission, Leaving
from quench.decommission_command import prepare
from quench.plan import load_inventory, make_plan
from quench.problems import Refused
from tests.plan.test_rollout_plan import _FLEET

EXAMPLE, NODE = "inventories/example.py", "node2.example.org"
STAYS, GOES = "deploys/hardening.py", "deploys/inference.py"
ALL = ["inventories/example.py", "inventories/medium.py"]


@pytest.fixture
def inventory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    # Whoever takes a node out need not have its secrets.
    monkeypatch.setenv("QUENCH_SECRETS", str(tmp_path / "nowhere"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "prod.py"
    path.write_text(_FLEET.format(changes={}))
    return str(path)


def decommission(inventory: str, node: str = NODE) -> Decommission:
    made = prepare(
        inventory, node, drain_seconds=1, last=False, unreachable=False, group_data=["inventories/group_data"],
        name=None, say=print, confirm=lambda found: False,
    )  # fmt: skip
    made._record.close()
    return made


def leaving(inventory: str) -> Leaving:
    return decommission(inventory)._node


def test_what_stays_is_what_a_host_has_whose_services_are_not_quenchs_business(inventory: str) -> None:
    node = leaving(inventory)
    assert sorted(node.roles) == ["base", "firewall", "hardening", "logrotate"]
    assert {"ssh.service", "firewalld.service", "auditd.service", "systemd-journald.service", "chrony.service"} <= set(
        node.units
    )
    assert not [unit for unit in node.units if unit.startswith(("vllm", "nginx", "nvidia"))]


@pytest.mark.parametrize("path", ALL)
def test_every_role_and_unit_of_what_stays_is_known_by_its_name_on_the_host(path: str) -> None:
    for host, plan in make_plan(load_inventory(path), [STAYS], limit=["inference"]).items():
        roles = [settings.prefix for settings in plan.settings]
        units = {unit for file in plan.files for unit in (file.restarts, file.reloads)}
        # An operation of all hosts has the words of each of them.
        installed = {name for line in plan.operations for name in re.findall(r"Install the files of (\S+)", line)}
        assert {name.partition("-")[0] for name in installed} == set(roles), host
        kept = re.findall(r"[\w@.-]+\.(?:service|timer)", " ".join(line for line in plan.operations if "Keep " in line))
        assert set(kept) - units <= {"audit-rules.service"}, host


@pytest.mark.parametrize("path", ALL)
def test_every_secret_of_a_node_is_known_by_its_mode_and_belongs_to_what_goes(
    path: str, example_secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUENCH_SECRETS", str(example_secrets))
    inventory = load_inventory(path)
    stays = make_plan(inventory, [STAYS], limit=["inference"])
    secrets = 0
    for host, plan in make_plan(load_inventory(path), [GOES], limit=["inference"]).items():
        assert plan.problems == []
        kept = {file.dest for file in stays[host].files}
        for file in plan.files:
            if file.secrets or re.search(r"\.key$|/keyring\.json$|^/etc/vllm/.*\.env$", file.dest):
                secrets += 1
                assert file.mode & 0o007 == 0, file.dest
                assert file.dest not in kept
    assert secrets >= 8


def test_the_operator_is_told_what_is_left_to_do(inventory: str) -> None:
    node = leaving(inventory)
    assert node.secrets == ["nginx_private_key"]
    assert node.todo[0] == f"take {NODE} out of the group inference in {inventory}"
    assert node.todo[1] == (
        f"then have the balancers forget it: pyinfra {inventory} deploys/balancer.py --group-data "
        "inventories/group_data --limit balancers --serial"
    )
    assert "keyring of its own" in node.todo[2], "the example's nodes check keys themselves"


def test_certificates_are_found_where_the_inventory_has_them(
    inventory: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert leaving(inventory).certificates == []
    ca.create(tmp_path / "ca", "Test CA")
    ca.issue(tmp_path / "ca", ["llm.example.org"])
    monkeypatch.setenv("QUENCH_SECRETS", str(tmp_path / "ca"))
    again = tmp_path / "again.py"  # pyinfra reads a path once
    again.write_text(Path(inventory).read_text())
    (certificate,) = leaving(str(again)).certificates
    assert certificate.path.endswith("/ca/llm.example.org.crt")


def test_a_node_that_is_not_one_is_refused_with_those_that_are(inventory: str) -> None:
    with pytest.raises(Refused, match=r"node9: inventory: is not in the group inference .*; there are node1\.example"):
        decommission(inventory, "node9")
    with pytest.raises(Refused, match=r"lb1\.example\.org: inventory: is not in the group inference"):
        decommission(inventory, "lb1.example.org")


def test_a_pattern_is_no_name(inventory: str) -> None:
    with pytest.raises(Refused, match=r"node\*: inventory"):
        decommission(inventory, "node*")


def test_an_inventory_without_balancers_is_refused(inventory: str) -> None:
    with pytest.raises(Refused, match="no host is in the group balancers"):
        decommission(EXAMPLE, NODE)


def test_its_lock_is_the_same_each_time(inventory: str) -> None:
    assert decommission(inventory)._claim.id == decommission(inventory)._claim.id
    assert decommission(inventory)._claim.id.startswith(f"decommission-{NODE}-")


def test_hosts_that_do_not_answer_are_refused_all_at_once_in_a_line_each(inventory: str, tmp_path: Path) -> None:
    # Nothing listens at this port, and nothing is asked beyond this machine.
    gone = '{"ssh_hostname": "127.0.0.1", "ssh_port": 1, "ssh_connect_retries": 0}'
    path = tmp_path / "gone.py"
    text = _FLEET.format(changes={NODE: json.loads(gone)}).replace(
        '"lb1.example.org", {}', f'"lb1.example.org", {gone}'
    )
    path.write_text(text)
    words = ["decommission", str(path), NODE, "--yes", "--group-data", "inventories/group_data"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert "2 problems, nothing was changed:" in done.stderr
    assert "lb1.example.org: lock: does not answer: " in done.stderr
    assert f"{NODE}: node: does not answer: " in done.stderr
    assert "if it is dead: --unreachable" in done.stderr
    assert "Traceback" not in done.output
