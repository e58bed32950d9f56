"""The firewall: one manager, with the rules that the last run brought, and nothing that goes past them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Entry, Unit

ZONES = "/etc/firewalld/zones/"


@pytest.fixture(scope="module")
def zones(host: Host, manifests: dict[str, dict[str, Entry]]) -> dict[str, ElementTree.Element]:
    """The zones that the last run brought, by name."""
    files = [path for path in manifests["firewall"] if path.startswith(ZONES)]
    parsed = {path: ElementTree.fromstring(host.file(path).content_string) for path in files}  # noqa: S314
    return {path.removeprefix(ZONES).removesuffix(".xml"): zone for path, zone in parsed.items()}


@dataclass
class Zone:
    """A zone as firewalld has given it to the kernel."""

    active: bool
    settings: dict[str, str] = field(default_factory=dict)
    rules: set[str] = field(default_factory=set)

    def words(self, setting: str) -> set[str]:
        return set(self.settings[setting].split())


@pytest.fixture(scope="module")
def in_force(host: Host) -> dict[str, Zone]:
    """The zones by name, from one question: firewall-cmd takes a third of a second for each."""
    found, zone = dict[str, Zone](), Zone(active=False)
    for line in host.check_output("firewall-cmd --list-all-zones").splitlines():
        if line.startswith("\t"):
            zone.rules.add(line.strip())
        elif line.startswith(" "):
            key, _, value = line.strip().partition(":")
            zone.settings[key] = value.strip()
        elif line:
            zone = found[line.split()[0]] = Zone(active="active" in line)
    return found


def rule_of(rule: ElementTree.Element) -> str:
    """A rule of a file in firewalld's own words: what a single host may call."""
    source, port, protocol = (rule.find(tag) for tag in ("source", "port", "protocol"))
    assert source is not None and rule.find("accept") is not None
    service = f'port port="{port.get("port")}" protocol="{port.get("protocol")}"' if port is not None else ""
    service = f'protocol value="{protocol.get("value")}"' if protocol is not None else service
    return f'rule family="{rule.get("family")}" source address="{source.get("address")}" {service} accept'


@pytest.mark.parametrize("name", ["firewalld.service", "quench-forward.service"])
def test_it_runs_and_comes_back_after_a_reboot(host: Host, unit: Callable[[str], Unit], name: str) -> None:
    assert host.service(name).is_enabled
    assert unit(name).property("ActiveState") == "active", unit(name).journal()


def test_firewalld_has_loaded_its_configuration(host: Host) -> None:
    # Else it runs all the same, with rules of its own.
    assert host.check_output("firewall-cmd --state") == "running"


def test_what_is_in_no_zone_is_dropped(host: Host, in_force: dict[str, Zone]) -> None:
    assert host.check_output("firewall-cmd --get-default-zone") == "closed"
    assert in_force["closed"].settings["target"] == "DROP"


def test_the_kernel_has_the_zones_that_the_files_have(
    zones: dict[str, ElementTree.Element], in_force: dict[str, Zone]
) -> None:
    for name, zone in zones.items():
        assert zone.get("target") == in_force[name].settings["target"] == "DROP", name
        ports = {f"{port.get('port')}/{port.get('protocol')}" for port in zone.findall("port")}
        assert in_force[name].words("ports") == ports, name
        if name != "trusted":  # podman adds its networks while containers run
            sources = {source.get("address") for source in zone.findall("source")}
            assert in_force[name].words("sources") == sources, name
        assert in_force[name].rules == {rule_of(rule) for rule in zone.findall("rule")}, name


def test_no_other_zone_is_in_use(zones: dict[str, ElementTree.Element], in_force: dict[str, Zone]) -> None:
    # docker binds its own bridge to a zone of its own; what it publishes is not forwarded all the same.
    assert {name for name, zone in in_force.items() if zone.active} - set(zones) <= {"docker"}


def test_what_the_host_calls_is_rejected_but_for_its_rules(host: Host) -> None:
    policy = host.check_output("firewall-cmd --info-policy=outgoing")
    assert "target: REJECT" in policy
    assert "ingress-zones: HOST" in policy
    assert "egress-zones: ANY" in policy
    assert policy.startswith("outgoing (active)")


def test_nothing_is_forwarded(host: Host) -> None:
    table = host.check_output("nft list table inet quench_forward")
    assert "hook forward priority filter - 5; policy drop;" in table
    assert "ct status dnat drop" in table


def test_no_other_manager_of_rules_is_there(host: Host) -> None:
    units = "nftables.service netfilter-persistent.service ufw.service"
    # Words on those that are there; both commands say so by their exit code as well.
    assert "enabled" not in host.run(f"systemctl is-enabled {units} 2>/dev/null").stdout.split()
    assert "active" not in host.run(f"systemctl is-active {units}").stdout.split()


def test_no_change_waits_to_be_proved(host: Host) -> None:
    assert host.run("ls /var/lib/quench/guard").stdout == ""
    assert "quench-rollback" not in host.check_output("systemctl list-timers --all --no-legend")


def test_the_forward_unit_is_in_a_sandbox(unit: Callable[[str], Unit]) -> None:
    assert unit("quench-forward.service").exposure() <= 2.0
