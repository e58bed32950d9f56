"""Bring nginx into place, in front of the engines of the same host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pyinfra import host

from quench import (
    Certificate,
    Engine,
    Flow,
    LogFiles,
    Problem,
    Refused,
    allow,
    ask,
    certificates,
    install,
    packages,
    role,
    service,
)
from quench.keyring import unknown_models
from roles.nginx.files import LOGS, PACKAGES, UNIT, files, keyring_file, limits
from roles.nginx.settings import NginxSettings


@role(NginxSettings)
def nginx(settings: NginxSettings, engines: Sequence[Engine], issued: Certificate = Certificate()) -> LogFiles:
    """TLS, keys, limits and an allow-list in front of the engines. Returns its log files."""
    problems = list(_unserved(settings, engines))
    problems += certificates.source_problems(
        host.name, "nginx", settings.certificate, settings.private_key, issued, settings.server_name
    )
    problems += [
        Problem(host.name, "nginx_port", f"{engine.model} has the port {engine.port}", "give nginx another")
        for engine in engines
        if engine.port == settings.port
    ]
    if problems:
        raise Refused(problems)
    allow(Flow("nginx", "in", tuple(settings.client_zones), settings.port, "clients of the models"))
    packages(PACKAGES, hold_back=[UNIT])
    managed = files(settings, engines, issued)
    install("nginx", managed)
    service(UNIT, managed)
    return LOGS


@role(NginxSettings, partial=True)
def nginx_keys(settings: NginxSettings, engines: Sequence[Engine]) -> None:
    """The keyring alone, on a host that is in place."""
    if problems := list(_unserved(settings, engines)):
        raise Refused(problems)
    name, wanted = host.name, limits(settings)
    # Without its zone a limit would be none.
    zones = "grep -o 'zone=[a-z0-9_]*:' /etc/nginx/nginx.conf | tr -d : | cut -d= -f2"
    ask(zones, lambda lines: _missing_limits(name, wanted - set(lines)))
    install("nginx", [keyring_file(settings)], partial=True)


def _missing_limits(name: str, missing: Iterable[str]) -> Iterator[Problem]:
    for zone in sorted(missing):
        kind, *numbers = zone.split("_")
        fields = ("requests_per_minute", "burst") if kind == "rate" else ("concurrent",)
        shown = ", ".join(f"{field} = {number}" for field, number in zip(fields, numbers, strict=True))
        what = f"nginx has no limit of {shown} yet"
        yield Problem(name, "nginx_clients", what, "run deploys/inference.py for this host first")


def _unserved(settings: NginxSettings, engines: Sequence[Engine]) -> Iterator[Problem]:
    served = [engine.model for engine in engines]
    for client, model in unknown_models(settings.clients, set(served)):
        key = f"nginx_clients.{client}.models"
        yield Problem(host.name, key, f"no engine here serves {model!r}", f"served: {', '.join(served)}")
