"""The proof that the controller still gets into a host whose way in has just changed."""

from __future__ import annotations

import time
from collections.abc import Generator

from pyinfra import context, logger
from pyinfra.api import FunctionCommand, StringCommand, operation
from pyinfra.api.host import Host
from pyinfra.api.state import State

from quench import facts
from quench.facts import STATE_DIRECTORY
from quench.transport import connect_once

# Seconds for a command that answers at once.
_PATIENCE = 20


def prove(role: str, *, guard: int) -> None:
    """Log in to the host anew, if a guarded `install` of this run changed files, and keep them only if that works.

    An established connection proves nothing: a firewall lets it live on. If the new login fails, the run waits until
    the host has brought the former files back, says so, and ends on this host.

    Args:
        role: as it was given to `install`.
        guard: seconds, as they were given to `install`.
    """
    _prove(name=f"Prove that the new files of {role} let the controller in", role=role, guard=guard)


@operation()
def _prove(role: str, guard: int) -> Generator[StringCommand | FunctionCommand, None, None]:
    # Without sudo, which may be what the new files have taken away.
    timer = f"/etc/systemd/system/quench-rollback-{role}.timer"
    if context.host.get_fact(facts.Lines, command=f"ls {timer} 2>/dev/null; true", _sudo=False):
        yield FunctionCommand(_log_in_anew, (role, guard), {})


def _log_in_anew(state: State, host: Host, role: str, guard: int) -> bool:
    host.disconnect()
    why = _login(host)
    if why is None:
        done, _ = host.run_shell_command(StringCommand(_keep(role)), _sudo=True, _timeout=_PATIENCE)
        return done or _say(host, f"the new files of {role} could not be kept; the former ones come back")
    _say(host, f"the new files of {role} keep the controller out: {why}. Waiting for the former ones, {guard} s")
    # Not before: each failed login counts against the controller, and sshd would keep it out for that:
    # PerSourcePenalties in sshd_config(5).
    time.sleep(guard)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        time.sleep(2)
        if _login(host) is None and not _pending(host, role):
            return _say(host, f"the former files of {role} are back, and so is the way in; correct the settings")
    return _say(host, f"not reached again after {guard + 30} s; look at its console")


def _keep(role: str) -> str:
    timer = f"quench-rollback-{role}.timer"
    files = f"/etc/systemd/system/{timer} /etc/systemd/system/quench-rollback-{role}.service"
    return f"systemctl disable --quiet --now {timer} && rm -rf {STATE_DIRECTORY}/guard/{role} {files}"


def _login(host: Host) -> str | None:
    """Why a new login, or sudo there, does not work. None if it does."""
    try:
        connect_once(host)
        done, output = host.run_shell_command(StringCommand("sudo -n true"), _timeout=_PATIENCE)
    except Exception as error:  # whatever it is that keeps the controller out
        host.connected = False
        return str(error) or type(error).__name__
    if done:
        return None
    host.disconnect()
    return f"sudo: {output.stderr}"


def _pending(host: Host, role: str) -> bool:
    done, _ = host.run_shell_command(
        StringCommand(f"test -e {STATE_DIRECTORY}/guard/{role}"), _sudo=True, _timeout=_PATIENCE
    )
    return done


def _say(host: Host, text: str) -> bool:
    host.log_styled(text, fg="red", log_func=logger.error)
    return False
