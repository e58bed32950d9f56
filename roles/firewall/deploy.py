"""Bring the firewall into place."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from pathlib import Path

from pyinfra import host

from quench import (
    WORLD,
    Problem,
    Refused,
    allow,
    allowed,
    ask,
    ensure,
    install,
    planned,
    prove,
    role,
    services,
    shell_script,
    zone_of,
)
from quench import packages as install_packages
from roles.firewall.files import FIREWALLD, FORWARD, files, impossible, opening, opening_of_another, packages, ssh, ways
from roles.firewall.settings import FirewallSettings

_PROBE = Path(__file__).parent / "probe.sh"
# What the last run that came to its end has brought, and that firewalld has read it.
_MANIFEST = "/var/lib/quench/manifest/firewall"
_READ = f"/var/lib/quench/converged/{FIREWALLD}.reload"


@role(FirewallSettings)
def firewall(settings: FirewallSettings) -> None:
    """Let through what the roles before this and the inventory declare, and nothing else. Last in a deploy file."""
    allow(ssh(settings), *(flow.flow() for flow in settings.flows))
    flows = allowed(last=True)
    problems = list(impossible(host.name, settings, flows))
    if problems:
        raise Refused(problems)
    name = host.name
    ask('echo "$1"', lambda answer: _locked_out(name, settings, answer))
    ask("ip -oneline address show scope global", lambda answer: _elsewhere(name, settings, answer))
    ask(shell_script(_PROBE), lambda answer: [Problem(name, *line.split("; ")) for line in answer])
    install_packages(packages(settings), hold_back=[FIREWALLD])
    managed = files(settings, flows)
    install("firewall", managed, guard=settings.rollback_seconds)
    services([FORWARD, FIREWALLD], managed)
    prove("firewall", managed, guard=settings.rollback_seconds)


@role(FirewallSettings, partial=True)
def firewall_ahead(settings: FirewallSettings) -> None:
    """Let through what this run will need, on a host that has a firewall already. First in a deploy file.

    Such as a mirror, or a CA, that the inventory has not named before: the roles between this and `firewall` ask it.
    What passed so far passes on, since it may serve until they are done.
    """
    flows = planned()
    digests = " ".join(file.sha256() for file in ways(files(settings, flows)))
    ensure(
        "Let through what this run needs beside what passes already",
        f"! systemctl is-active --quiet {FIREWALLD} || "
        f'for digest in {digests}; do grep -qs "^$digest " {_MANIFEST} || echo new; done',
        # Without the stamp the next run that gets to the firewall reloads it, also one with another inventory.
        f"rm -f {_READ}; if [ -e {_MANIFEST} ]; then {opening(settings, flows)}; "
        f"else {opening_of_another(settings, flows)}; fi",
    )


def _locked_out(name: str, settings: FirewallSettings, answer: list[str]) -> list[Problem]:
    """Whether the rules would keep out the one who brings them. `answer` is sshd's SSH_CONNECTION."""
    words = answer[0].split() if answer else []
    if len(words) != 4:
        return []  # a connection that sshd does not describe, such as a console
    client, port = ip_address(words[0]), int(words[3])
    problems = []
    if WORLD not in settings.ssh_zones and not any(client in net for net in settings.networks(settings.ssh_zones)):
        what = f"does not have {client}, from which this run logs in"
        problems.append(Problem(name, "firewall_ssh_zones", what, "put its network into one of these zones"))
    if port != settings.ssh_port:
        what = f"is {settings.ssh_port}, but this run has logged in to port {port}"
        problems.append(Problem(name, "firewall_ssh_port", what, f"set firewall_ssh_port = {port}"))
    return problems


def _elsewhere(name: str, settings: FirewallSettings, answer: list[str]) -> list[Problem]:
    """Whether the host is in another zone than it says: the matrix of flows would be wrong. `answer` is ip(8)'s."""
    addresses = [str(ip_interface(line.split()[3]).ip) for line in answer]
    found = {zone_of(address, settings.zones) for address in addresses}
    if settings.zone in found:
        return []
    zones = sorted(zone for zone in found if zone is not None)
    what = f"is {settings.zone!r}, but none of the host's addresses is there: {', '.join(addresses) or 'it has none'}"
    remedy = f"set firewall_zone = {zones[0]!r}" if zones else f"put its network into {settings.zone} of firewall_zones"
    return [Problem(name, "firewall_zone", what, remedy)]
