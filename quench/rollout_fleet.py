"""What rollouts and decommissions ask of a fleet, all its balancers as one, and how they tell of their steps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from typing_extensions import override

from quench.haproxy import Server, State
from quench.problems import Problem, Refused
from quench.rollout_record import Claim

# Seconds between two questions of the same kind.
POLL = 1.0
# What is said of a step that Ctrl-C has ended: nobody waits for a journal then.
INTERRUPTED = "interrupted"
# What to do if the only nodes that are left get no request.
GIVE_WEIGHT = "give one of them a weight first: its nginx_weight, and a run of deploys/balancer.py"


class Failure(Exception):
    """A step that did not succeed. `what` never holds the value of a secret."""

    def __init__(self, host: str, what: str, remedy: str) -> None:
        super().__init__(host, what, remedy)
        self.host, self.what, self.remedy = host, what, remedy
        self.step = "rollout"

    @override
    def __str__(self) -> str:
        return str(Problem(self.host, self.step, self.what, self.remedy))


class LockLost(Failure):
    """Somebody else has taken the rollout over: nothing more is touched."""


@dataclass(frozen=True)
class Kept:
    """The release that is kept on a node.

    Args:
        plan: the hash under which a rollout brought it; empty if none did.
        models: those that it served.
        fresh: kept now; else by a rollout before, which did not come to its end on this node.
    """

    plan: str
    models: tuple[str, ...]
    fresh: bool


class Fleet(Protocol):
    """What a rollout asks of hosts. Every method raises Failure if the host, or what is asked, says no."""

    @property
    def balancers(self) -> Sequence[str]:
        """Names of the balancers."""

    @property
    def without(self) -> Sequence[str]:
        """Names of balancers that are left out: they are told nothing."""

    def is_there(self, balancer: str) -> bool:
        """Whether a balancer that is left out is there all the same, and may be sending requests."""

    def servers(self, balancer: str) -> list[Server]:
        """All nodes in all pools."""

    def set_state(self, balancer: str, servers: Sequence[Server], state: State) -> None:
        """Drain nodes, close them, or let them have requests again: slowly, if they were closed."""

    def former(self, balancer: str) -> int:
        """Processes of HAProxy from before a reload that finish their answers. A later drain does not reach them."""

    def lock(self, balancer: str, claim: Claim, take_over: str) -> Claim | None:
        """Take the lock, from the rollout `take_over` if need be. Who has it, if that is somebody else."""

    def unlock(self, balancer: str, claim: Claim) -> None:
        """Give the lock back, if it is one's own."""

    def marked(self, balancer: str) -> list[str]:
        """Nodes that rollouts have drained, and not brought back."""

    def mark(self, balancer: str, nodes: Collection[str]) -> None:
        """Write down which these are."""

    def keep(self, node: str, models: Collection[str]) -> Kept:
        """Keep the release that a node has, with the models that it serves, unless one is kept for it already."""

    def change(self, nodes: Sequence[str]) -> None:
        """Bring nodes to what the inventory says."""

    def restore(self, node: str) -> None:
        """Bring the release back that is kept."""

    def let_go(self, node: str, plan: str) -> None:
        """A node is through: the next rollout may keep its release anew. `plan` is the hash of what it has now."""

    def units(self, node: str) -> list[tuple[str, str]]:
        """Units of Quench that are not active, each with its state."""

    def completion(self, balancer: str, node: Server, model: str) -> None:
        """Have a model complete something, directly at the node, by the way that requests take."""

    def prompts(self, balancer: str, node: Server, models: Collection[str]) -> None:
        """Have the models answer the operator's prompts as they should."""

    def host_checks(self, node: str) -> None:
        """Run the checks of hosts, if the operator wants them."""

    def note(self, node: str, text: str) -> None:
        """Write a line into the node's journal."""


@dataclass
class Step:
    """A step of a node: `detail` says what there is to say of it, or why it failed."""

    name: str
    seconds: float
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Progress:
    """A step that is over, for people: node `number` of `total`."""

    number: int
    total: int
    node: str
    step: Step


@dataclass(frozen=True)
class Waited:
    """How a wait for answers has ended.

    Args:
        cut: requests of each node that are still in flight.
        former: balancers on which a HAProxy from before a reload was waited for.
        late: those of them on which it still serves.
    """

    cut: Counter[str] = field(default_factory=Counter[str])
    former: Sequence[str] = ()
    late: Sequence[str] = ()

    def told(self, node: str, seconds: float) -> str:
        """What there is to say of it, for a node that was waited for so long."""
        said = [cut_off(self.cut[node], seconds)] if self.cut[node] else []
        if self.late:
            who = f"the HAProxy from before a reload of {', '.join(self.late)}"
            said.append(f"{who} still serves after {seconds:.0f} s, and what it has in flight will be cut")
        elif self.former:
            said.append(f"waited for the HAProxy from before a reload of {', '.join(self.former)}")
        return "; ".join(said)


class Balancers:
    """All balancers of a fleet as one, for whoever has their lock.

    Args:
        claim: whose the lock is to be.
        clock, sleep: of seconds.
    """

    def __init__(
        self, fleet: Fleet, claim: Claim, *, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self._fleet, self._claim, self._clock, self._sleep = fleet, claim, clock, sleep

    def lock(self, take_over: str) -> None:
        """Take the lock at each of them, or at none.

        Raises:
            Refused: with who has it, or which of them does not answer.
        """
        taken: list[str] = []
        problems = []
        for balancer in self._fleet.balancers:
            try:
                holder = self._fleet.lock(balancer, self._claim, take_over)
            except KeyboardInterrupt:
                # It may have it, though nobody has heard so.
                self.unlock([*taken, balancer])
                raise
            except Failure as failure:
                problems.append(Problem(failure.host, "lock", failure.what, failure.remedy))
                continue
            if holder is None:
                taken.append(balancer)
            else:
                remedy = f"wait until it is through; if it is dead: --take-over {holder.id}"
                problems.append(Problem(balancer, "lock", f"{holder} holds it", remedy))
        if problems:
            self.unlock(taken)
            raise Refused(problems)

    def unlock(self, balancers: Sequence[str] | None = None) -> list[str]:
        """Give the lock back. Where that does not work, a line each."""
        said = []
        for balancer in self._fleet.balancers if balancers is None else balancers:
            try:
                self._fleet.unlock(balancer, self._claim)
            except Failure as failure:
                said.append(f"{balancer}: the lock stays: {failure.what}; --take-over {self._claim.id}")
        return said

    def hold(self, *, patient: bool = False) -> None:
        """See that the lock is still one's own. patient: a balancer may be silent."""
        for balancer in self._fleet.balancers:
            try:
                holder = self._fleet.lock(balancer, self._claim, "")
            except Failure:
                if not patient:
                    raise
                continue
            if holder is not None:
                raise LockLost(balancer, f"{holder} has taken this rollout over", "leave the rest to it")

    def set_state(
        self, nodes: Collection[str], state: State, which: Callable[[str, Server], bool] = lambda balancer, server: True
    ) -> None:
        """Give nodes a state at every balancer, be one of them silent.

        Args:
            which: only where this holds, of a balancer and what it has of a node.

        Raises:
            Failure: the first, when all have been told.
        """
        failures = []
        for balancer in self._fleet.balancers:
            try:
                found = [server for server in self._fleet.servers(balancer) if server.name in nodes]
                if chosen := [server for server in found if which(balancer, server)]:
                    self._fleet.set_state(balancer, chosen, state)
            except Failure as failure:
                failures.append(failure)
        if failures:
            raise failures[0]

    def wait(self, nodes: Sequence[str], seconds: float) -> Waited:
        """Wait until nothing is in flight, or the time is over.

        A HAProxy from before a reload tells nobody what it has in flight, and may still send requests: it has to end.
        """
        former: dict[str, None] = {}
        deadline = self._clock() + seconds
        while True:
            places = [server for node in nodes for _, server in self.places(node)]
            busy = [server for server in places if server.in_flight or server.waiting]
            over = self._clock() >= deadline
            # Asked for when there is nothing else to wait for.
            late = [one for one in self._fleet.balancers if (over or not busy) and self._fleet.former(one)]
            former |= dict.fromkeys(late)
            if over or not (busy or late):
                break
            self._sleep(POLL)
        left = Counter[str]()
        for server in busy:
            left[server.name] += server.in_flight + server.waiting
        return Waited(left, list(former), late)

    def places(self, node: str) -> Iterator[tuple[str, Server]]:
        """Each balancer, with what it has of a node.

        Raises:
            Failure: if one of them does not know it.
        """
        for balancer in self._fleet.balancers:
            found = [server for server in self._fleet.servers(balancer) if server.name == node]
            if not found:
                raise Failure(node, f"{balancer} has it in no pool any more", "look at the balancer's configuration")
            yield from ((balancer, server) for server in found)


@contextmanager
def timed(name: str, clock: Callable[[], float], over: Callable[[Step], None]) -> Iterator[Step]:
    """A step, of which is told when it is over, be it that it failed or was interrupted."""
    start = clock()
    step = Step(name, 0, ok=True)
    try:
        yield step
    except (Failure, KeyboardInterrupt) as end:
        step.seconds, step.ok, step.detail = clock() - start, False, INTERRUPTED
        if isinstance(end, Failure):
            end.step, step.detail = name, end.what
        over(step)
        raise
    step.seconds = clock() - start
    over(step)


def uncovered(pool: str, others: Sequence[Server], balancer: str) -> tuple[str, str] | None:
    """Why the other nodes of a pool cannot answer in the place of one, and what to do; None: they can."""
    if any(server.covers for server in others):
        return None
    if any(server.up for server in others):
        what = f"the other nodes of {pool} that are up have weight 0 at {balancer}, and get no request"
        return what, GIVE_WEIGHT
    return f"no other node of {pool} is up at {balancer}", "bring one of them back first"


def cut_off(requests: int, seconds: float) -> str:
    """What is said of requests that did not come to their end in time."""
    which = "1 request is" if requests == 1 else f"{requests} requests are"
    return f"{which} still in flight after {seconds:.0f} s, and will be cut"


def entry(claim: Claim, node: str, step: Step) -> dict[str, Any]:
    """A step as a line of the history: who did it, when, with which outcome."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rollout": claim.id,
        "who": claim.who,
        "source": claim.source,
        "node": node,
        "step": step.name,
        "outcome": "ok" if step.ok else "failed",
        "seconds": step.seconds,
        "detail": step.detail,
    }
