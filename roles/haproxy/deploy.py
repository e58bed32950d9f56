"""Bring HAProxy into place, in front of the nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pyinfra import host

from quench import (
    Flow,
    LogFiles,
    Node,
    Problem,
    Refused,
    allow,
    ask,
    ensure,
    install,
    packages,
    role,
    services,
    shell_script,
)
from quench.keyring import unknown_models
from roles.haproxy.files import LOGS, MAPS, PACKAGES, ROUTER, UNIT, files, maps, pools
from roles.haproxy.settings import HaproxySettings

_MAPS = Path(__file__).parent / "maps.sh"


@role(HaproxySettings)
def haproxy(settings: HaproxySettings, nodes: Sequence[Node]) -> LogFiles:
    """TLS, keys, limits, a queue and pools in front of the nodes. Returns its log files."""
    _check_models(settings, nodes)
    allow(
        Flow("haproxy", "in", tuple(settings.client_zones), settings.port, "clients of the models"),
        Flow("haproxy", "in", tuple(settings.metrics_zones), settings.metrics_port, "counters of HAProxy"),
        *(
            Flow("haproxy", "out", tuple(settings.node_zones), port, "inference nodes")
            for port in sorted({node.port for node in nodes})
        ),
    )
    packages(PACKAGES, hold_back=[UNIT, "nginx.service"])
    managed = files(settings, nodes)
    install("haproxy", managed)
    ensure(
        "Stop the nginx of the package",
        "systemctl is-active nginx.service | grep -x active",
        "systemctl stop nginx.service",
    )
    services([ROUTER, UNIT], managed)
    _into_the_process()
    return LOGS


@role(HaproxySettings, partial=True)
def haproxy_keys(settings: HaproxySettings, nodes: Sequence[Node]) -> None:
    """The keyring alone, on a balancer that is in place."""
    _check_models(settings, nodes)
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


def _check_models(settings: HaproxySettings, nodes: Sequence[Node]) -> None:
    served = [pool.model for pool in pools(nodes)]
    problems = [
        Problem(
            host.name,
            f"haproxy_clients.{client}.models",
            f"no node serves {model!r}",
            f"served: {', '.join(served)}",
        )
        for client, model in unknown_models(settings.clients, set(served))
    ]
    if not served:
        problems.append(
            Problem(host.name, "inventory", "no node serves a model", "give the nodes of the group inference models")
        )
    if problems:
        raise Refused(problems)
