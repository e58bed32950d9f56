"""A plan: what a deploy wants on each host, found by running the deploy file without a network.

The deploy file is the one that `pyinfra` runs, on the same inventory; only the hosts are replaced by
pyinfra's fake connector, and no operation is asked for its commands. So what `quench render` shows
and what a host gets come from the same calls.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import pyinfra
from pyinfra import context
from pyinfra.api.config import Config
from pyinfra.api.exceptions import NoGroupError
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State, StateStage
from pyinfra.connectors.fake import FakeConnector
from pyinfra.context import ctx_config, ctx_host, ctx_inventory, ctx_state

import quench.order  # noqa: F401 - plans and runs read deploy files by it
from quench.contracts import Engine, Flow
from quench.files import ManagedDirectory, ManagedFile
from quench.problems import Problem, Refused
from quench.settings import RoleSettings, unclaimed


@dataclass(frozen=True)
class Question:
    """What a host is asked before the run changes anything.

    Args:
        command: shell, run as root. It changes nothing. Its `$1` is sshd's SSH_CONNECTION.
        problems: what the answer, line by line, says against the run.
    """

    command: str
    problems: Callable[[list[str]], Iterable[Problem]]


@dataclass
class HostPlan:
    """What a deploy wants on one host, in the order in which the deploy names it."""

    host: str
    platform: str | None = None
    settings: list[RoleSettings] = field(default_factory=list)
    files: list[ManagedFile] = field(default_factory=list)
    directories: list[ManagedDirectory] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    flows: list[Flow] = field(default_factory=list)
    engines: list[Engine] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


Plan = dict[str, HostPlan]

_recording: WeakKeyDictionary[Host, HostPlan] = WeakKeyDictionary()
_flows: WeakKeyDictionary[Host, list[Flow]] = WeakKeyDictionary()
# Hosts whose firewall is made already.
_closed: WeakSet[Host] = WeakSet()


def recording() -> HostPlan | None:
    """The plan that is being recorded for the current host, or None in a run on real hosts."""
    return _recording.get(_current_host())


def load_inventory(
    path: str, *, group_data: Sequence[str] = (), override_data: Mapping[str, Any] | None = None
) -> Inventory:
    """The inventory as pyinfra reads it.

    Raises:
        Refused: for a path that does not exist. pyinfra itself would exit with 0 and do nothing.
    """
    # Imported where it is needed: pyinfra_cli patches the standard library for gevent as it is imported.
    from pyinfra_cli.inventory import make_inventory

    if not Path(path).exists():
        problem = Problem(path, "inventory", "no such file", "name an inventory, e.g. inventories/prod.py")
        raise Refused([problem])
    with ctx_state.use(State()):
        inventory: Inventory = make_inventory(
            path,
            override_data=dict(override_data or {}),
            cwd=os.getcwd(),
            group_data_directories=list(group_data),
        )
    return inventory


def make_plan(
    inventory: Inventory,
    deploys: Sequence[str],
    *,
    limit: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Plan:
    """Run deploy files against an inventory, offline.

    Args:
        deploys: paths of deploy files.
        limit, exclude: group names or host patterns, as pyinfra's own options.

    Returns:
        A plan per host, by name. Problems stand in it; they are not raised.
    """
    from pyinfra_cli.cli import _apply_inventory_exclude, _apply_inventory_limit

    chosen = _apply_inventory_exclude(inventory, _apply_inventory_limit(inventory, limit), exclude)
    # Sorted, since pyinfra keeps hosts in a set, and a rendered tree must not depend on its order.
    hosts = sorted(inventory if chosen is None else chosen, key=lambda host: host.name)
    for host in hosts:
        host.connector_cls = FakeConnector
    state = State(check_for_changes=False)
    state.cwd = os.getcwd()
    config = Config()
    with _as_command_line(), ctx_state.use(state), ctx_config.use(config), ctx_inventory.use(inventory):
        state.init(inventory, config, initial_limit=hosts)
        state.set_stage(StateStage.Prepare)
        plan = {host.name: _plan_host(state, host, deploys) for host in hosts}
        order = state.get_op_order()
        for host in hosts:
            names = (", ".join(sorted(state.op_meta[op].names)) for op in order if op in state.ops[host])
            plan[host.name].operations.extend(names)
    return plan


def _plan_host(state: State, host: Host, deploys: Sequence[str]) -> HostPlan:
    from pyinfra_cli.util import exec_file

    host_plan = HostPlan(host.name)
    data = host.data.dict()
    host_plan.problems.extend(unclaimed(host.name, data))
    _recording[host] = host_plan
    state.activate_host(host)
    with ctx_host.use(host):
        try:
            for number, deploy in enumerate(deploys):
                state.current_op_file_number = number
                state.current_deploy_filename = deploy
                exec_file(deploy)
        except Refused as refused:  # by the data of another host, which no role of this one records
            host_plan.problems.extend(refused.problems)
        host_plan.flows.extend(allowed())
    return host_plan


def _current_host() -> Host:
    # `context.host` is a proxy; the dictionary must be keyed by what it stands for.
    host = context.ctx_host.get()
    assert isinstance(host, Host)
    return host


@dataclass(frozen=True)
class Peer:
    """Another host of the inventory, by its data."""

    name: str
    data: Mapping[str, Any]


def peers(group: str) -> list[Peer]:
    """The hosts of a group, by name, whether or not this run is about them.

    Raises:
        Refused: if the inventory has no such group.
    """
    try:
        hosts = context.inventory.get_group(group)
    except NoGroupError:
        what = f"the inventory has no group {group!r}"
        raise Refused(
            [Problem(_current_host().name, "inventory", what, f"name the hosts in a group {group}")]
        ) from None
    return [Peer(host.name, host.data.dict()) for host in sorted(hosts, key=lambda host: host.name)]


def allow(*flows: Flow) -> None:
    """Declare what has to pass between the current host and others. The firewall lets nothing else through.

    Raises:
        Refused: if the firewall is in place already, and would know nothing of it.
    """
    host = _current_host()
    if host in _closed:
        what = f"{flows[0].role} comes after the firewall, which would not let it through: {flows[0].why}"
        raise Refused([Problem(host.name, "deploy", what, "put firewall() last in the deploy file")])
    _flows.setdefault(host, []).extend(flows)


def allowed(*, last: bool = False) -> list[Flow]:
    """What the roles so far have declared for the current host.

    Args:
        last: the firewall is made of these; nothing may be declared after them.
    """
    if last:
        _closed.add(_current_host())
    return sorted(set(_flows.get(_current_host(), [])))


@contextmanager
def _as_command_line() -> Iterator[None]:
    # Operations are ordered by their line in the deploy file only when pyinfra runs as a command.
    before, pyinfra.is_cli = pyinfra.is_cli, True
    try:
        yield
    finally:
        pyinfra.is_cli = before
