"""Bring the hardening into place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quench import Engine, LogFiles, allowed, ensure, install, packages, prove, role, services, shell_script
from roles.hardening.files import EDITED, JOURNALD, LOGS, PACKAGES, SSHD, TIMERS, TMP_LATER, audit_units, files
from roles.hardening.settings import HardeningSettings

_HOST = Path(__file__).parent / "host.sh"


@role(HardeningSettings)
def hardening(settings: HardeningSettings, engines: Sequence[Engine] = ()) -> LogFiles:
    """SSH, passwords, kernel, audit; after the roles whose needs it has to know. Returns its log files."""
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
