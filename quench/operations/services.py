"""Units that run with the files that are there, and units that do not run."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Sequence

from pyinfra import context
from pyinfra.api import operation

from quench import facts
from quench.facts import STATE_DIRECTORY, UnitState
from quench.files import Managed, ManagedFile
from quench.operations.commands import Commands, change
from quench.operations.questions import ensure


def service(unit: str, managed: Sequence[Managed]) -> None:
    """Keep a unit enabled and running, with the files that it has now.

    The hash for which the last restart or reload succeeded stands on the host. As long as it is not the
    present one the unit is restarted (or reloaded, where that is enough), also by a later run.

    Args:
        unit: systemd unit name, with its suffix.
        managed: files of the role; those that name the unit count.
    """
    _services(name=f"Keep {unit} running with its present configuration", units=[unit], managed=list(managed))


def services(units: Sequence[str], managed: Sequence[Managed]) -> None:
    """The same for several units, one after the other; the host is asked for all of them at once."""
    name = f"Keep {', '.join(units)} running with their present configuration"
    _services(name=name, units=list(units), managed=list(managed))


@operation()
def _services(units: list[str], managed: list[Managed]) -> Commands:
    states = context.host.get_fact(facts.Units, units=units)
    files = [item for item in managed if isinstance(item, ManagedFile)]
    enable, starts, stale = [], [], False
    for unit in units:
        state = states.get(unit, UnitState({}, "", ""))
        restart = _digest(item for item in files if item.restarts == unit)
        reload = _digest(item for item in files if item.reloads == unit)
        must_restart = state.restarted != restart or not (state.settled or state.starting)
        # `packages` masks a new service until its configuration is in place.
        if must_restart or state.properties.get("UnitFileState") not in ("enabled", "static"):
            enable.append(unit)
        stale |= state.properties.get("NeedDaemonReload") == "yes"
        if must_restart or state.reloaded != reload:
            starts.append(_start(unit, restart, reload, restarts=must_restart))
        elif state.starting:
            # A restart would begin the loading of weights anew. This waits for the start that is under way.
            starts.append(_or_journal(unit, f"systemctl start {shlex.quote(unit)}"))
    steps = []
    if enable:
        steps.append(f"systemctl unmask --runtime --quiet --no-reload {shlex.join(enable)}")
        # Else it calls update-rc.d(8) for each that has a script of SysV's as well, which reloads systemd twice.
        steps.append(f"SYSTEMCTL_SKIP_SYSV=1 systemctl enable --quiet --no-reload {shlex.join(enable)}")
    if enable or stale:
        # Once for all of them: it takes a tenth of a second, in which systemd does nothing else.
        steps.append("systemctl daemon-reload")
    if steps or starts:
        yield change(f"{{ {' && '.join([*steps, *starts])}; }} || {{ {_ROLL_BACK}; exit 1; }}")


def _start(unit: str, restart: str, reload: str, *, restarts: bool) -> str:
    """Restart or reload a unit, and remember for which files that was."""
    quoted, stamp = shlex.quote(unit), shlex.quote(f"{STATE_DIRECTORY}/converged/{unit}")
    steps = [f"systemctl reload {quoted}"]
    if restarts:
        # What a killed run left running may have done it, while this one waited for it to end.
        done = f'[ "$(cat {stamp}.restart 2>/dev/null)" = {restart} ] && systemctl is-active --quiet {quoted}'
        # A unit that failed before its files came stays failed if its own condition keeps it from starting now.
        anew = f"{{ systemctl reset-failed {quoted} 2>/dev/null || true; }} && systemctl restart {quoted}"
        steps = [f"{{ {{ {done}; }} || {{ {anew}; }}; }}"]
    steps += [
        f"mkdir -p {STATE_DIRECTORY}/converged",
        f"echo {restart} >{stamp}.restart",
        f"echo {reload} >{stamp}.reload",
    ]
    return _or_journal(unit, " && ".join(steps))


def _or_journal(unit: str, command: str) -> str:
    # The journal says why a unit did not start; without it the operator would have to log in.
    journal = f"journalctl --unit {shlex.quote(unit)} --lines 20 --no-pager --output cat >&2"
    return f"{{ {{ {command}; }} || {{ {journal}; false; }}; }}"


# A unit that does not start with guarded files need not wait for their timer.
_ROLL_BACK = (
    f"for role in $(ls {STATE_DIRECTORY}/guard 2>/dev/null); do "
    'echo "quench: the former files of $role come back now" >&2; '
    "systemctl start --no-block quench-rollback-$role.service; done"
)


def _digest(files: Iterable[ManagedFile]) -> str:
    lines = sorted(f"{item.dest} {item.sha256()} {item.mode:o} {item.owner}:{item.group}" for item in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def keep_off(name: str, units: Sequence[str]) -> None:
    """Keep units of packages from running, at boots as well: what `packages` has held back comes with them.

    Args:
        name: imperative sentence, the operation's name.
        units: those that are not there are none of its business.
    """
    words = " ".join(units)
    ensure(
        name,
        f"systemctl is-enabled {words} 2>/dev/null | grep -E '^(enabled|masked-runtime)'",
        f"systemctl unmask --runtime --quiet {words}; systemctl disable --quiet --now {words} 2>/dev/null; true",
    )
