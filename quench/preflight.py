"""Everything that can be known is checked before anything is changed.

`before_connecting` stands in config.py, which pyinfra reads before it opens a connection. It makes the
plan of the run and refuses it with all problems of all hosts at once. `preflight` stands first in each
deploy file and asks the hosts what only they know.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import gevent
from pyinfra import context
from pyinfra.api.facts import get_fact
from pyinfra.api.host import Host
from pyinfra.connectors.sshuserclient.client import get_ssh_config
from pyinfra.context import ctx_host

from quench import facts
from quench.contracts import Flow
from quench.plan import HostPlan, Plan, load_inventory, make_plan, recording
from quench.problems import Problem, Refused

CONNECT_SECONDS = 5.0

# The plan of the run that this process is, set before the first connection.
_plan: Plan | None = None
# Whether the hosts have been asked. A deploy file may be made of others, each of which begins with `preflight()`.
_asked = False


def before_connecting() -> None:
    """Plan the run of the current pyinfra command, if that runs deploy files, and refuse it if need be.

    Raises:
        Refused: with every problem that can be known without a login.
    """
    from pyinfra_cli.cli import _set_override_data

    global _plan
    arguments = click.get_current_context().params
    deploys = [str(argument) for argument in arguments["operations"]]
    if not deploys or not all(deploy.endswith(".py") and os.path.exists(deploy) for deploy in deploys):
        return  # `fact`, `exec`, `debug-inventory`, or a deploy file that pyinfra itself will miss
    connection = ("ssh_user", "ssh_key", "ssh_key_password", "ssh_port", "ssh_password")
    override = _set_override_data(arguments["data"], *(arguments[name] for name in connection))
    inventory = load_inventory(arguments["inventory"], group_data=arguments["group_data"], override_data=override)
    _plan = make_plan(inventory, deploys, limit=arguments["limit"], exclude=arguments["exclude"])
    problems = offline_problems(_plan, arguments["inventory"])
    hosts = [inventory.get_host(name) for name in _plan]
    problems += [problem for host in hosts for problem in _missing_login_files(host)]
    problems += _unreachable(hosts)
    if problems:
        raise Refused(problems)


def offline_problems(plan: Plan, inventory: str) -> list[Problem]:
    """All problems of a plan. A plan without hosts is one."""
    if not plan:
        return [Problem(inventory, "hosts", "no host is chosen", "correct --limit or the inventory")]
    return [problem for host_plan in plan.values() for problem in host_plan.problems]


def preflight() -> None:
    """Ask all hosts of the run, at once, whether they are what their data says. First in a deploy file.

    Raises:
        Refused: if a host is not what its data says, or lacks what it must have, before any change.
    """
    if recording() is not None:
        return
    if _plan is None:
        problem = Problem("all hosts", "config.py", "was not read", "run pyinfra in the checkout's top folder")
        raise Refused([problem])
    global _asked
    if _asked:
        # The deploy file runs once for each host; the first of them asks for all and speaks for all.
        return
    _asked = True
    hosts = context.state.inventory.get_active_hosts()
    checks = [gevent.spawn(_host_problems, host, _plan[host.name]) for host in hosts]
    gevent.joinall(checks, raise_error=True)
    problems = [problem for check in checks for problem in check.value]
    if problems:
        raise Refused(problems)


def planned() -> list[Flow]:
    """All flows that this run will declare for the current host. None while it is still being planned."""
    if recording() is not None or _plan is None:
        return []
    return _plan[context.host.name].flows


def _host_problems(host: Host, plan: HostPlan) -> list[Problem]:
    with ctx_host.use(host):
        # Without pyinfra's own sudo: it would ask for a password on a terminal that may not be there.
        identity = get_fact(
            context.state,
            host,
            facts.Identity,
            kwargs={"questions": [question.command for question in plan.questions], "_sudo": False},
            apply_failed_hosts=False,
        )
    return list(_compare(host, plan, identity))


def _compare(host: Host, plan: HostPlan, identity: facts.HostIdentity | None) -> Iterator[Problem]:
    name = host.name
    if identity is None:
        yield Problem(name, "ssh_user", "the host answers, but runs no command", "log in by hand and look")
        return
    if identity.going_down:
        yield Problem(name, "ssh_hostname", "the host is about to reboot", "wait until it is back, and run again")
        return
    if not identity.sudo:
        user = host.data.get("ssh_user") or "the login user"
        remedy = f"allow it in sudoers: {user} ALL=(ALL) NOPASSWD: ALL"
        yield Problem(name, "ssh_user", f"{user} may not use sudo without a password", remedy)
    if plan.platform is not None and identity.platform != plan.platform:
        what = f"is {plan.platform!r}, but the host is {identity.platform!r}"
        yield Problem(name, "platform", what, f"set platform = {identity.platform!r} for this host")
        return
    if identity.sudo:
        # A command that printed nothing at the end of the list left no answer behind.
        silent: list[list[str]] = [[]] * (len(plan.questions) - len(identity.answers))
        for question, answer in zip(plan.questions, [*identity.answers, *silent], strict=True):
            yield from question.problems(answer)


def _missing_login_files(host: Host) -> Iterator[Problem]:
    for key in ("ssh_key", "ssh_known_hosts_file", "ssh_config_file"):
        path = host.data.get(key)
        if path and not Path(path).expanduser().is_file():
            yield Problem(host.name, key, f"{path}: no such file", "correct the path, or put the file there")


def _unreachable(hosts: Sequence[Host]) -> list[Problem]:
    with ThreadPoolExecutor(max_workers=32) as pool:
        return [problem for problem in pool.map(_knock, hosts) if problem is not None]


def _knock(host: Host) -> Problem | None:
    """Whether something answers on the host's SSH port. A host behind a jump host is not asked."""
    if host.name.startswith("@"):
        return None
    name = host.data.get("ssh_hostname") or host.name
    config = get_ssh_config(host.data.get("ssh_config_file"))
    ssh = config.lookup(name) if config else {}
    if "proxyjump" in ssh or "proxycommand" in ssh:
        return None
    address = str(ssh.get("hostname", name))
    port = int(host.data.get("ssh_port") or ssh.get("port") or 22)
    error = _refusal(address, port)
    if error is None:
        return None
    what = f"{address} port {port} does not answer: {error.strerror or error}"
    remedy = f"start the host, correct ssh_hostname, or leave it out: --exclude {host.name}"
    return Problem(host.name, "ssh_hostname", what, remedy)


def _refusal(address: str, port: int) -> OSError | None:
    """Why there is no connection. Where nobody listens, sshd may be starting anew, as a killed run has left it."""
    found: OSError | None = None
    for pause in (1, 1, 0):
        try:
            socket.create_connection((address, port), timeout=CONNECT_SECONDS).close()
        except ConnectionRefusedError as error:
            found = error
            time.sleep(pause)
        except OSError as error:
            return error
        else:
            return None
    return found
