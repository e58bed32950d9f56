"""keepalived: it runs in its sandbox, asks the frontend, and hears its peers alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Entry, Unit

CONFIG = "/etc/keepalived/keepalived.conf"
# capabilities(7), by number.
NET_ADMIN, NET_RAW = 12, 13
# A check takes some hundredths of a second, once each second.
_CATCH = (
    "i=0; while [ $i -lt 1000 ]; do i=$((i + 1)); pid=$(pgrep -n -x -u keepalived curl) && "
    "cat /proc/$pid/status 2>/dev/null && break; done"
)


@pytest.fixture(scope="module")
def keepalived(unit: Callable[[str], Unit]) -> Unit:
    return unit("keepalived.service")


@pytest.fixture(scope="module")
def text(host: Host) -> str:
    return str(host.file(CONFIG).content_string)


def block(text: str, name: str) -> list[str]:
    """First word of each line of a block, without comments."""
    body = re.search(rf"^ *{name} \{{\n(.*?)^ *\}}", text, re.MULTILINE | re.DOTALL)
    lines = body[1].splitlines() if body else []
    return [line.split()[0] for line in lines if not line.strip().startswith("#")]


def test_it_is_enabled_and_runs(host: Host, keepalived: Unit) -> None:
    assert host.service(keepalived.name).is_enabled
    assert keepalived.property("ActiveState") == "active", keepalived.journal()


def test_it_runs_with_its_present_unit_file(keepalived: Unit) -> None:
    assert keepalived.property("NeedDaemonReload") == "no"
    assert keepalived.property("FragmentPath") == f"/etc/systemd/system/{keepalived.name}"


def test_it_does_not_run_as_root(host: Host, keepalived: Unit) -> None:
    status = keepalived.kernel_says()
    assert set(status["Uid"].split()) == {str(host.user("keepalived").uid)} != {"0"}
    assert host.user("keepalived").shell.endswith("/nologin")


def test_the_kernel_gives_it_no_more_than_it_needs(keepalived: Unit) -> None:
    status = keepalived.kernel_says()
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapBnd"], 16) == 1 << NET_ADMIN | 1 << NET_RAW


def test_the_sandbox_is_tight(keepalived: Unit) -> None:
    assert keepalived.exposure() <= 2.0


def test_the_program_that_asks_the_frontend_has_no_power_at_all(host: Host) -> None:
    status = host.check_output(_CATCH)
    assert re.findall(r"^Cap(?:Prm|Eff|Amb):\t0+$", status, re.MULTILINE) != []
    assert re.findall(r"^Cap(?:Prm|Eff|Amb):\t0*[1-9a-f]", status, re.MULTILINE) == []


def test_it_takes_its_configuration(host: Host) -> None:
    said = host.run("setpriv --reuid=keepalived --regid=keepalived --init-groups keepalived --config-test 2>&1")
    assert (said.rc, said.stdout) == (0, "")


def test_it_has_all_virtual_addresses_or_none(host: Host, text: str) -> None:
    wanted = block(text, "virtual_ipaddress") + block(text, "virtual_ipaddress_excluded")
    assert wanted
    (interface,) = re.findall(r"^ *interface (\S+)$", text, re.MULTILINE)
    shown = host.check_output("ip -brief address show dev %s", interface).split()
    there = [address for address in wanted if address in shown]
    assert there in ([], wanted)


def test_no_address_is_taken_back(text: str) -> None:
    assert re.search(r"^ *nopreempt$", text, re.MULTILINE)
    assert re.search(r"^ *state BACKUP$", text, re.MULTILINE)


def test_the_firewall_lets_vrrp_in_from_the_peers_alone(
    host: Host, text: str, manifests: dict[str, dict[str, Entry]]
) -> None:
    if "firewall" not in manifests:
        pytest.skip("no firewall of Quench on this host")
    peers = block(text, "unicast_peer")
    assert peers
    zones = host.check_output("firewall-cmd --list-all-zones")
    rules = [line for line in zones.splitlines() if 'protocol value="vrrp"' in line or 'value="112"' in line]
    sources = [re.findall(r'source address="([^"/]+)(?:/32|/128)?"', rule) for rule in rules]
    assert sorted(sources) == sorted([peer] for peer in peers)
    assert not re.search(r"^  protocols: .*\b(?:vrrp|112)\b", zones, re.MULTILINE)
