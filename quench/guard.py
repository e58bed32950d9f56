"""The proof that the controller still gets into a host whose way in has just changed."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence

from pyinfra import context, logger
from pyinfra.api import FunctionCommand, StringCommand, operation
from pyinfra.api.host import Host
from pyinfra.api.state import State

from quench import facts
from quench.facts import STATE_DIRECTORY, rollback_unit
from quench.files import Managed
from quench.operations.commands import change, failure
from quench.operations.files import asked, in_place
from quench.transport import connect_once

# Seconds for a command that answers at once.
_PATIENCE = 20


def prove(role: str, managed: Sequence[Managed], *, guard: int) -> None:
    """Log in to the host anew, if a guarded `install` of this run changed files, and keep them only if that works.

    An established connection proves nothing: a firewall lets it live on. If the new login fails, the run waits until
    the host has brought the former files back, says so, and ends on this host. It ends as well if the host has done
    that already: a run goes on only when its slowest host is done.

    Args:
        role, managed, guard: as they were given to `install`.
    """
    name = f"Prove that the new files of {role} let the controller in"
    _prove(name=name, role=role, managed=list(managed), guard=guard)


@operation()
def _prove(role: str, managed: list[Managed], guard: int) -> Generator[StringCommand | FunctionCommand, None, None]:
    state = context.host.get_fact(facts.ProvedFiles, **asked(role, managed), _sudo=False)
    if state is None:
        yield FunctionCommand(_log_in_anew, (role, guard), {})
    elif not in_place(managed, state):
        what = f"the host went back to the former files of {role} before this run came to log in anew"
        remedy = "run again, with more seconds there, or with fewer hosts at a time: --limit"
        yield failure([f"{role}_rollback_seconds: {what}; {remedy}"])


def _log_in_anew(state: State, host: Host, role: str, guard: int) -> bool:
    host.disconnect()
    why = _login(host)
    if why is None:
        # A way back that has begun by then holds the lock.
        done, _ = host.run_shell_command(_keep(role), _sudo=True, _timeout=guard + _PATIENCE)
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


def _keep(role: str) -> StringCommand:
    unit = rollback_unit(role)
    files = f"/etc/systemd/system/{unit}.timer /etc/systemd/system/{unit}.service"
    # What the timer has started before its end goes on, and wins.
    waits = f"case $(systemctl is-active {unit}.service) in inactive | failed | unknown) ;; *) exit 1 ;; esac"
    return change(
        f"systemctl disable --quiet --now {unit}.timer && {waits} && rm -rf {STATE_DIRECTORY}/guard/{role} {files}"
    )


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
