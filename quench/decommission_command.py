"""A decommission, put together from what the operator has said and what the inventory says, and its report."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from quench import certificates
from quench.decommission import Certificate, Decommission, Found, Leaving, Options, Result
from quench.files import CHECKOUT
from quench.plan import load_inventory, make_plan
from quench.preflight import offline_problems
from quench.problems import Problem, Refused
from quench.rollout_command import claimed, fleet_hosts, fleet_record
from quench.rollout_fleet import Progress
from quench.rollout_hosts import BALANCERS, NODES, SshFleet
from quench.secrets import SCHEMES

# What a host has whose services are not Quench's business: all of it stays.
_STAYS = CHECKOUT / "deploys" / "hardening.py"


def prepare(
    inventory: str,
    node: str,
    *,
    drain_seconds: int,
    last: bool,
    unreachable: bool,
    group_data: Sequence[str],
    name: str | None,
    say: Callable[[Progress], None],
    confirm: Callable[[Sequence[Found]], bool],
) -> Decommission:
    """A decommission that is ready to run. No host has been asked anything yet.

    Raises:
        Refused: with what is wrong with the inventory or the choice of the node.
    """
    remedy = "this takes a node out from behind its balancers; a host alone is stopped and erased by hand"
    hosts = fleet_hosts(inventory, group_data, remedy)
    nodes = hosts.group(NODES)
    if node not in nodes:
        what = f"is not in the group {NODES} of {inventory}"
        raise Refused([Problem(node, "inventory", what, f"there are {', '.join(nodes)}")])
    # Loaded again: a plan leaves its hosts with a connector that reaches none.
    plan = make_plan(load_inventory(inventory, group_data=group_data), [str(_STAYS)], limit=[node])
    if problems := offline_problems(plan, inventory):
        raise Refused(problems)
    data = hosts.data(node)
    leaving = Leaving(
        node,
        roles=[settings.prefix for settings in plan[node].settings],
        units=sorted({unit for file in plan[node].files for unit in (file.restarts, file.reloads) if unit}),
        secrets=sorted(key for key, value in data.items() if _is_secret(value)),
        certificates=list(_certificates(data)),
        todo=list(_todo(inventory, group_data, node, data)),
    )
    record = fleet_record(inventory, name)
    # Of its own for each node and controller, so that the same command finds its own lock after a crash.
    claim = claimed(f"decommission-{node}-{socket.gethostname()}")
    fleet = SshFleet(hosts, [], [], None, record.folder)
    options = Options(drain_seconds, last, unreachable)
    return Decommission(fleet, record, claim, leaving, options, say=say, confirm=confirm)


def _is_secret(value: object) -> bool:
    return isinstance(value, str) and value.partition(":")[0] in SCHEMES and ":" in value


def _certificates(data: Mapping[str, Any]) -> Iterator[Certificate]:
    """Those of the inventory, as far as they lie on this machine."""
    for key, path in sorted(data.items()):
        if key.endswith("_certificate") and isinstance(path, str):
            with suppress(OSError, RuntimeError, UnicodeDecodeError):
                if (found := Certificate.read(path, certificates.text(path).encode())) is not None:
                    yield found


def _todo(inventory: str, group_data: Sequence[str], node: str, data: Mapping[str, Any]) -> Iterator[str]:
    yield f"take {node} out of the group {NODES} in {inventory}"
    folders = [word for folder in group_data for word in ("--group-data", folder)]
    words = ["pyinfra", inventory, "deploys/balancer.py", *folders, "--limit", BALANCERS, "--serial"]
    yield f"then have the balancers forget it: {shlex.join(words)}"
    if data.get("nginx_clients"):
        yield "it had a keyring of its own: a key that was for this node alone goes by quench keys revoke"
    yield f"what was removed may still be readable on the disks of {node}: erase or destroy them as your policy says"


def told(result: Result) -> Iterator[str]:
    """What became of it, line by line, for people."""
    title = {
        "done": f"{result.node} is decommissioned",
        "nothing to do": f"{result.node} was decommissioned before; nothing was changed",
        "unwiped": f"{result.node} is out of the fleet, and was not wiped",
        "halted": f"{result.node} is not decommissioned",
        "interrupted": f"{result.node} is not decommissioned",
    }
    yield f"{title[result.outcome]}, {result.seconds:.0f} s"
    rows = [("stopped", unit) for unit in result.stopped]
    rows += [("removed", shown(found)) for found in result.removed]
    rows += [("trimmed", f"{path}: the disk was told which blocks are free") for path in result.trimmed]
    rows += [("left", found.amiss[0]) for found in result.left]
    rows += [("stays", text) for text in result.stays]
    rows += [("to do", text) for text in result.todo]
    for word, text in rows:
        yield f"  {word:8} {text}"


def shown(found: Found) -> str:
    """One thing of a node, for people."""
    if found.kind == "unit":
        return f"{found.name} ({found.detail})"
    if found.kind == "data":
        return f"{found.name} ({found.files} file{'s' if found.files != 1 else ''}, {_bytes(found.size)})"
    if found.kind == "secret":
        return f"{found.name} ({_bytes(found.size)})"
    return found.amiss[0]


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
