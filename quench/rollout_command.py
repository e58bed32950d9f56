"""A rollout, put together from what the operator has said and what the inventory says."""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quench.plan import HostPlan, load_inventory, make_plan
from quench.preflight import offline_problems
from quench.problems import Problem, Refused
from quench.render import manifest
from quench.rollout import NodePlan, Options, Result, Rollout
from quench.rollout_fleet import Progress
from quench.rollout_hosts import (
    BALANCERS,
    NODES,
    Hosts,
    SshFleet,
    check_command,
    load_prompts,
    natural,
    pyinfra_command,
)
from quench.rollout_record import Claim, Record

# What tests/host is run with. Who only runs Quench has none of it: requirements/runtime.txt.
_CHECKERS = ("pytest", "testinfra", "pytest_timeout")


def prepare(
    inventory: str,
    deploys: Sequence[str],
    options: Options,
    *,
    group_data: Sequence[str],
    limit: Sequence[str],
    exclude: Sequence[str],
    prompts: Path | None,
    host_checks: bool,
    name: str | None,
    say: Callable[[Progress], None],
) -> Rollout:
    """A rollout that is ready to run. No host has been asked anything yet.

    Raises:
        Refused: with all that is wrong with the inventory, the choice of nodes or the prompts.
    """
    asked = load_prompts(prompts) if prompts else []
    if host_checks and (missing := [name for name in _CHECKERS if find_spec(name) is None]):
        what = f"{' and '.join(missing)} cannot be imported here, and the host checks need it"
        remedy = "pip install --require-hashes -r requirements/dev.txt, or leave --host-checks out"
        raise Refused([Problem("this machine", "host checks", what, remedy)])
    remedy = "a rollout is for nodes behind balancers; bring a single node into place with pyinfra itself"
    hosts = fleet_hosts(inventory, group_data, remedy)
    # Loaded again: a plan leaves its hosts with a connector that reaches none.
    planned = load_inventory(inventory, group_data=group_data)
    wanted = make_plan(planned, deploys, limit=limit or [NODES], exclude=exclude)
    chosen = sorted(set(wanted) & set(hosts.group(NODES)), key=natural)
    plan = {node: wanted[node] for node in chosen}
    problems = offline_problems(plan, inventory)
    if problems:
        raise Refused(problems)
    without = hosts.named(BALANCERS, exclude)
    if len(without) == len(hosts.group(BALANCERS)):
        raise Refused([Problem(inventory, "hosts", "no balancer is left to be told", "correct --exclude")])
    record = fleet_record(inventory, name)
    claim = claimed(record.unfinished or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
    change = pyinfra_command(inventory, deploys, group_data)
    fleet = SshFleet(hosts, change, asked, check_command() if host_checks else None, record.folder, without)
    plans = {node: NodePlan(digest(found), models(found), sealed(found, record.salt)) for node, found in plan.items()}
    return Rollout(fleet, record, plans, claim, options, say=say)


def fleet_hosts(inventory: str, group_data: Sequence[str], remedy: str) -> Hosts:
    """The hosts of an inventory that has balancers and nodes.

    Raises:
        Refused: with the remedy, if one of these groups has nobody.
    """
    hosts = Hosts(load_inventory(inventory, group_data=group_data))
    for group in (BALANCERS, NODES):
        if not hosts.group(group):
            raise Refused([Problem(inventory, "hosts", f"no host is in the group {group}", remedy)])
    return hosts


def fleet_record(inventory: str, name: str | None) -> Record:
    """What the controller remembers of a fleet, which has the name of its inventory if it has no other.

    An inventory of the same name in another folder is another fleet.
    """
    path = Path(inventory).resolve()
    own = f"{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    return Record(state_folder(), _file_name(name or own))


def claimed(name: str) -> Claim:
    """The claim of whoever runs this command."""
    who = os.environ.get("SUDO_USER") or getpass.getuser()
    return Claim(name, who, socket.gethostname(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def digest(plan: HostPlan) -> str:
    """A hash of what a node is to get. A secret counts by its reference: logs and journals have this hash."""
    return hashlib.sha256("\n".join([manifest(plan), *plan.operations]).encode()).hexdigest()


def sealed(plan: HostPlan, salt: bytes) -> str:
    """A hash of the values of a node's secrets; empty if it has none.

    It takes its time and memory (RFC 7914), so that nobody who finds it can try values: a secret may be a short one.
    """
    values = [f"{file.dest} {file.sha256()}" for file in plan.files if file.secrets]
    if not values:
        return ""
    return hashlib.scrypt("\n".join(sorted(values)).encode(), salt=salt, n=2**14, r=8, p=1, dklen=32).hex()


def models(plan: HostPlan) -> tuple[str, ...]:
    """The models that a node is to serve."""
    return tuple(sorted({engine.model for engine in plan.engines}))


def state_folder() -> Path:
    """Where the controller remembers its rollouts."""
    home = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(home) / "quench" / "rollouts"


def summary(result: Result) -> dict[str, Any]:
    """What became of a rollout, for JSON."""
    return asdict(result)


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        remedy = "take letters, digits, dots and dashes: --name prod"
        raise Refused([Problem("this machine", "name", f"{name!r} is no name for a file", remedy)])
    return name
