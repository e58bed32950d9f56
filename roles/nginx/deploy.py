"""Bring nginx into place, in front of the engines of the same host."""

from __future__ import annotations

from collections.abc import Sequence

from pyinfra import host

from quench import Engine, Flow, LogFiles, Problem, Refused, allow, install, packages, role, service
from quench.keyring import unknown_models
from roles.nginx.files import LOGS, PACKAGES, UNIT, files
from roles.nginx.settings import NginxSettings


@role(NginxSettings)
def nginx(settings: NginxSettings, engines: Sequence[Engine]) -> LogFiles:
    """TLS, keys, limits and an allow-list in front of the engines. Returns its log files."""
    problems = [
        Problem(
            host.name,
            f"nginx_clients.{client}.models",
            f"no engine here serves {model!r}",
            f"served: {', '.join(engine.model for engine in engines)}",
        )
        for client, model in unknown_models(settings.clients, {engine.model for engine in engines})
    ]
    problems += [
        Problem(host.name, "nginx_port", f"{engine.model} has the port {engine.port}", "give nginx another")
        for engine in engines
        if engine.port == settings.port
    ]
    if problems:
        raise Refused(problems)
    allow(Flow("nginx", "in", tuple(settings.client_zones), settings.port, "clients of the models"))
    packages(PACKAGES, hold_back=[UNIT])
    managed = files(settings, engines)
    install("nginx", managed)
    service(UNIT, managed)
    return LOGS
