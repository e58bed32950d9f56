"""Bring the hardening into place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyinfra import host

from quench import Engine, LogFiles, allowed, ensure, install, packages, prove, role, service, shell_script
from roles.hardening.files import EDITED, JOURNALD, LOGS, PACKAGES, SSHD, audit_units, files
from roles.hardening.settings import HardeningSettings

_HOST = Path(__file__).parent / "host.sh"


@role(HardeningSettings)
def hardening(settings: HardeningSettings, engines: Sequence[Engine] = ()) -> LogFiles:
    """SSH, passwords, kernel, audit; after the roles whose needs it has to know. Returns its log files."""
    packages(PACKAGES, hold_back=audit_units(settings))
    managed = files(settings, sorted({flow.role for flow in allowed()}))
    install("hardening", managed, guard=settings.rollback_seconds, beside=EDITED)
    compilers = next((engine.group for engine in engines), "root")
    words = (compilers, str(settings.password_days))
    ensure(
        "Harden what belongs to the distribution",
        shell_script(_HOST, "ask", *words),
        shell_script(_HOST, "mend", *words),
    )
    for unit in host.loop([SSHD, JOURNALD, *audit_units(settings)]):
        service(unit, managed)
    ensure(
        # systemd-journald.service(8): a new journald writes to memory until it is told that the disk is there.
        "Write the journal to disk",
        "ls -d /run/log/journal/*/system.journal 2>/dev/null; true",
        "journalctl --flush",
    )
    prove("hardening", guard=settings.rollback_seconds)
    return LOGS
