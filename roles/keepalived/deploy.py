"""Bring keepalived into place."""

from __future__ import annotations

from pyinfra import host

from quench import Problem, account, allow, ask, install, packages, role, service
from roles.keepalived.files import PACKAGES, UNIT, USER, files, flows
from roles.keepalived.settings import KeepalivedSettings


@role(KeepalivedSettings)
def keepalived(settings: KeepalivedSettings) -> None:
    """Virtual addresses that this balancer has as long as its frontend answers, or another one has."""
    problem = Problem(
        host.name,
        "keepalived_address",
        f"{settings.address} is not an address of {settings.interface} on the host",
        "name the host's own address, and in keepalived_interface where it is",
    )
    has = f"ip -oneline address show dev {settings.interface} to {settings.address} 2>/dev/null | grep -q ."
    ask(f"{has} || echo no", lambda answer: [problem] * len(answer))
    allow(*flows(settings))
    packages(PACKAGES, hold_back=[UNIT])
    account(USER, home="/nonexistent")
    managed = files(settings)
    install("keepalived", managed)
    service(UNIT, managed)
