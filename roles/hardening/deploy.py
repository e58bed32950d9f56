"""Bring the hardening into place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyinfra import host

from quench import (
    Engine,
    LogFiles,
    Problem,
    allowed,
    ask,
    ensure,
    install,
    packages,
    prove,
    role,
    services,
    shell_script,
)
from roles.hardening.files import EDITED, JOURNALD, LOGS, PACKAGES, SSHD, TIMERS, TMP_LATER, audit_units, files
from roles.hardening.settings import HardeningSettings

_HOST = Path(__file__).parent / "host.sh"
# Ubuntu's way to start sshd: systemd listens, on a port that sshd's own files do not change.
_LISTENER = "! systemctl is-active --quiet ssh.socket || echo ssh.socket"


@role(HardeningSettings)
def hardening(settings: HardeningSettings, engines: Sequence[Engine] = ()) -> LogFiles:
    """SSH, passwords, kernel, audit; after the roles whose needs it has to know. Returns its log files."""
    name = host.name
    ask(_LISTENER, lambda answer: _other_listener(name, settings.ssh_port, answer))
    packages(PACKAGES, hold_back=audit_units(settings))
    managed = files(settings, sorted({flow.role for flow in allowed()}))
    install("hardening", managed, guard=settings.rollback_seconds, beside=EDITED)
    compilers = next((engine.group for engine in engines), "root")
    words = (compilers, str(settings.password_days), settings.tmp_options(), TMP_LATER)
    services([SSHD, JOURNALD, *audit_units(settings), *(f"{name}.timer" for name in TIMERS)], managed)
    ensure(
        "Harden what belongs to the distribution",
        shell_script(_HOST, "ask", *words),
        shell_script(_HOST, "mend", *words),
    )
    prove("hardening", managed, guard=settings.rollback_seconds)
    return LOGS


def _other_listener(name: str, port: int, answer: list[str]) -> list[Problem]:
    """Whether sshd would not listen on its port, since systemd does in its place, on another one."""
    if not answer or port == 22:
        return []
    remedy = "let sshd listen by itself: systemctl disable --now ssh.socket && systemctl enable --now ssh.service"
    return [Problem(name, "hardening_ssh_port", f"is {port}, but ssh.socket decides on the port of this host", remedy)]
