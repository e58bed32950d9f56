"""Rebooting a host, one at a time, and going on afterwards."""

from __future__ import annotations

import shlex
import time
from collections.abc import Generator, Sequence

from pyinfra import context, logger
from pyinfra.api import FunctionCommand, StringCommand, operation
from pyinfra.api.host import Host
from pyinfra.api.state import State

from quench import facts
from quench.operations.commands import failure
from quench.transport import connect_once

# A container keeps the boot id of the machine that it runs on; its first process is another after a reboot.
_BOOT = "cat /proc/sys/kernel/random/boot_id; cut -d' ' -f22 /proc/1/stat"

# Seconds for a command that answers at once. A host that goes down in its midst would never end it.
_PATIENCE = 20

# Hosts that this run rebooted and that did not come back.
_lost: list[str] = []


def reboot(
    name: str, *, question: str, ready: str, units: Sequence[str], allowed: bool, key: str, seconds: int
) -> None:
    """Reboot the host if need be, and wait until it is back; one host at a time.

    A host that does not come back ends its own run, and no further host is rebooted.

    Args:
        name: imperative sentence, the operation's name.
        question: shell that prints why a reboot is needed, and nothing if it is not.
        ready: shell that prints why the host would not come up as it should, and nothing if it would.
        units: what starts with the host and the run looks at next, as far as it is there. Other units may take longer
            than the host: an engine loads its model.
        allowed: whether this run may reboot. If not, it ends on this host with the reason.
        key: the setting that allows it.
        seconds: how long the host may take.
    """
    _reboot(
        name=name,
        question=question,
        ready=ready,
        units=list(units),
        allowed=allowed,
        key=key,
        seconds=seconds,
        _serial=True,
    )


@operation()
def _reboot(
    question: str, ready: str, units: list[str], allowed: bool, key: str, seconds: int
) -> Generator[StringCommand | FunctionCommand, None, None]:
    host = context.host
    why = host.get_fact(facts.Lines, command=question)
    if not why:
        return
    reason = "; ".join(why)
    if not allowed:
        remedy = f"reboot it in a maintenance window and run again, or set {key} = 'when-needed'"
        yield failure([f"{key}: a reboot is pending: {reason}; {remedy}"])
        return
    yield StringCommand(
        f'why=$({{ {ready}; }} 2>&1); [ -z "$why" ] || {{ echo "{host.name}: {key}: not rebooted, since it would '
        'not come up as it should: $why" >&2; exit 1; }'
    )
    before: list[str] = []
    yield FunctionCommand(_go_down, (before,), {})
    yield FunctionCommand(_come_back, (before, units, seconds), {})


def _go_down(state: State, host: Host, before: list[str]) -> bool:
    if _lost:
        return _say(host, f"not rebooted, since {_lost[0]} did not come back; see to that one first")
    before.extend(_boot_of(host))
    if not before:
        return _say(host, "not rebooted, since it does not say which boot it is in; look at it")
    # systemd stops all units in their order, and so lets engines finish the answers that they have begun. In a second,
    # so that the connection, which goes down with it, brings the answer of this command first.
    # systemd.timer(5): without AccuracySec a timer may take a minute longer.
    timer = "--on-active=1s --timer-property=AccuracySec=100ms"
    command = f"systemd-run --quiet --collect --unit={facts.REBOOT_UNIT} {timer} systemctl --no-block reboot"
    done, _ = host.run_shell_command(StringCommand(command), _sudo=True, _timeout=_PATIENCE)
    host.disconnect()
    return done or _say(host, "does not begin to reboot; see journalctl there")


def _come_back(state: State, host: Host, before: list[str], units: list[str], seconds: int) -> bool:
    deadline, now = time.monotonic() + seconds, before
    while time.monotonic() < deadline:
        time.sleep(2)
        try:
            connect_once(host)
            now = _boot_of(host) or now
            if now != before and _has_started(host, units):
                return True
        except Exception:  # whatever keeps it away, it is not back yet
            host.connected = False
            continue
        host.disconnect()
    _lost.append(host.name)
    if now == before and _still_there(host):
        return _say(host, f"still in the boot before, {seconds} s after it was told to reboot; look at its console")
    return _say(host, f"rebooted, and not back after {seconds} s; look at its console. The next run goes on from there")


def _boot_of(host: Host) -> list[str]:
    done, output = host.run_shell_command(StringCommand(_BOOT), _timeout=_PATIENCE)
    return output.stdout_lines if done else []


def _has_started(host: Host, units: list[str]) -> bool:
    # A unit that has started or failed has no job any more. systemctl(1), list-jobs
    jobs = f"systemctl list-jobs --no-legend {shlex.join(units)}"
    command = f"systemctl is-active --quiet basic.target && ! {jobs} | grep -q ."
    done, _ = host.run_shell_command(StringCommand(command), _timeout=_PATIENCE)
    return done


def _still_there(host: Host) -> bool:
    try:
        connect_once(host)
        return bool(_boot_of(host))
    except Exception:  # it is not
        return False


def _say(host: Host, text: str) -> bool:
    host.log_styled(text, fg="red", log_func=logger.error)
    return False
