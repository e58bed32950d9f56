"""Users of the host."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pyinfra import context
from pyinfra.api import operation

from quench import facts
from quench.operations.commands import Commands, change


def account(
    user: str, *, home: str, shell: str = "/usr/sbin/nologin", groups: Sequence[str] = (), person: bool = False
) -> None:
    """Have a user with a locked password and a group of its own.

    Args:
        home: home folder; it is not created.
        groups: supplementary groups, which the user is added to and never removed from.
        person: a number for people, and not one for services, if the user is made.
    """
    _account(name=f"Have the user {user}", user=user, home=home, shell=shell, groups=list(groups), person=person)


@operation()
def _account(user: str, home: str, shell: str, groups: list[str], person: bool = False) -> Commands:
    present = context.host.get_fact(facts.Account, user=user)
    quoted = shlex.quote(user)
    attributes = f"--home-dir {shlex.quote(home)} --shell {shlex.quote(shell)}"
    if not present:
        yield change(
            f"id -u {quoted} >/dev/null 2>&1 || "
            f"useradd {'' if person else '--system '}--user-group --no-create-home {attributes} {quoted}"
        )
    elif (present["home"], present["shell"]) != (home, shell):
        yield change(f"usermod {attributes.replace('--home-dir', '--home')} {quoted}")
    missing = sorted(set(groups) - set(present.get("groups", "").split()))
    if missing:
        yield change(f"usermod --append --groups {','.join(missing)} {quoted}")
