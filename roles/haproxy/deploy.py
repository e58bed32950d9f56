"""Bring HAProxy into place, in front of the nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pyinfra import host

from quench import (
    Certificate,
    Flow,
    LogFiles,
    Node,
    Problem,
    Refused,
    allow,
    ask,
    certificates,
    ensure,
    install,
    packages,
    role,
    services,
    shell_script,
)
from quench.keyring import unknown_models
from roles.haproxy.files import LOG_UNITS, LOGS, MAPS, PACKAGES, ROUTER, UNIT, files, maps, pools
from roles.haproxy.settings import HaproxySettings

_MAPS = Path(__file__).parent / "maps.sh"


@role(HaproxySettings)
def haproxy(settings: HaproxySettings, nodes: Sequence[Node], issued: Certificate = Certificate()) -> LogFiles:
    """TLS, keys, limits, a queue and pools in front of the nodes. Returns its log files."""
    problems = list(_unserved(settings, nodes))
    problems += certificates.source_problems(
        host.name, "haproxy", settings.certificate, settings.private_key, issued, settings.server_name
    )
    if problems:
        raise Refused(problems)
    allow(
        Flow("haproxy", "in", tuple(settings.client_zones), settings.port, "clients of the models"),
        Flow("haproxy", "in", tuple(settings.metrics_zones), settings.metrics_port, "counters of HAProxy"),
        *(
            Flow("haproxy", "out", tuple(settings.node_zones), port, "inference nodes")
            for port in sorted({node.port for node in nodes})
        ),
    )
    packages(PACKAGES, hold_back=[UNIT, "nginx.service"])
    managed = files(settings, nodes, issued)
    install("haproxy", managed)
    ensure(
        "Stop the nginx of the package",
        "systemctl is-active nginx.service | grep -x active",
        "systemctl stop nginx.service",
    )
    services([*LOG_UNITS, ROUTER, UNIT], managed)
    _into_the_process()
    return LOGS


@role(HaproxySettings, partial=True)
def haproxy_keys(settings: HaproxySettings, nodes: Sequence[Node]) -> None:
    """The keyring alone, on a balancer that is in place."""
    if problems := list(_unserved(settings, nodes)):
        raise Refused(problems)
    name, wanted = host.name, {pool.name for pool in pools(nodes)}
    # A client that is sent to a pool of the next release would get nothing there.
    ask("sed -n 's/^backend //p' /etc/haproxy/haproxy.cfg", lambda lines: _missing_pools(name, wanted - set(lines)))
    install("haproxy", maps(settings, nodes), partial=True)
    _into_the_process()


def _missing_pools(name: str, missing: Iterable[str]) -> Iterator[Problem]:
    for pool in sorted(missing):
        what = f"HAProxy has no pool for the model {pool.removeprefix('pool_')} yet"
        yield Problem(name, "haproxy_clients", what, "run deploys/balancer.py for this host first")


def _into_the_process() -> None:
    ensure(
        "Bring the keyring into the running HAProxy",
        shell_script(_MAPS, "ask", *MAPS),
        shell_script(_MAPS, "mend", *MAPS),
    )


def _unserved(settings: HaproxySettings, nodes: Sequence[Node]) -> Iterator[Problem]:
    served = [pool.model for pool in pools(nodes)]
    for client, model in unknown_models(settings.clients, set(served)):
        key = f"haproxy_clients.{client}.models"
        yield Problem(host.name, key, f"no node serves {model!r}", f"served: {', '.join(served)}")
    if not served:
        yield Problem(host.name, "inventory", "no node serves a model", "give the nodes of the group inference models")
