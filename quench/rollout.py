"""A change goes through a fleet node by node, without a lost request: steps and their order.

A node is drained at the balancers, keeps its release, is changed, proves that it serves, and comes back. Whatever
fails after the change brings the former release back. What hosts are asked, and how, is behind `Fleet`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import gevent

from quench.haproxy import Server
from quench.problems import Problem, Refused
from quench.rollout_fleet import (
    GIVE_WEIGHT,
    INTERRUPTED,
    POLL,
    Balancers,
    Failure,
    Fleet,
    LockLost,
    Progress,
    Step,
    Waited,
    entry,
    timed,
    uncovered,
)
from quench.rollout_record import Claim, Record

# Seconds for other nodes to be up before a node is drained: one that has just come back may have to settle.
_ROOM = 30.0


@dataclass(frozen=True)
class NodePlan:
    """What a node is to get.

    Args:
        hash: of all that, but for the values of secrets, so that everybody may see it.
        models: those that it will serve.
        secrets: a hash of the values, for this machine's record alone.
    """

    hash: str
    models: tuple[str, ...]
    secrets: str = ""

    @property
    def whole(self) -> str:
        """What tells it from a plan with other values of its secrets."""
        return f"{self.hash} {self.secrets}".rstrip()


@dataclass(frozen=True)
class Options:
    """How a rollout goes. Times are in seconds."""

    batch: int = 1
    drain_seconds: float = 660
    ready_seconds: float = 300


@dataclass
class NodeResult:
    """What became of a node.

    Args:
        outcome: `not begun`, `skipped`, `in work`, `done`, `untouched` (drained in vain, and serving as before),
            `restored` (serving its former release) or `drained` (serving nothing).
        cut: requests that were still in flight when the time for them was over.
    """

    outcome: str = "not begun"
    plan_before: str = ""
    plan_after: str = ""
    cut: int = 0
    steps: list[Step] = field(default_factory=list)


@dataclass
class Result:
    """What became of a rollout: `done`, `halted` or `interrupted`; the latter two with the reasons, a line each."""

    rollout: str
    outcome: str
    reasons: list[str]
    seconds: float
    nodes: dict[str, NodeResult]

    @property
    def code(self) -> int:
        """Exit code of the command."""
        return {"done": 0, "halted": 1, "interrupted": 130}[self.outcome]


class _Halt(Exception):
    """The rollout ends here; everything that can be undone has been."""


class Rollout:
    """One rollout.

    Args:
        plans: what each node is to get, by name, in the order in which they come.
        say: is told each step when it is over.
        clock, sleep: of seconds.
    """

    def __init__(
        self,
        fleet: Fleet,
        record: Record,
        plans: Mapping[str, NodePlan],
        claim: Claim,
        options: Options,
        *,
        say: Callable[[Progress], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = gevent.sleep,
    ) -> None:
        self._fleet, self._record, self._plans, self._claim, self._options = fleet, record, plans, claim, options
        self._say, self._clock, self._sleep = say, clock, sleep
        self._balancers = Balancers(fleet, claim, clock=clock, sleep=sleep)
        self._results = {node: NodeResult(plan_after=plan.hash) for node, plan in plans.items()}
        self._reasons: list[str] = []
        # Nodes that are not, or may not be, what they were before: they do not come back unverified.
        self._changed: set[str] = set()
        # Marked by a rollout before, and not this one's to bring back.
        self._others: set[str] = set()
        self._models: dict[str, tuple[str, ...]] = {}
        # How the wait of the present batch has ended.
        self._waited = Waited()

    def run(self, *, take_over: str = "") -> Result:
        """Bring all nodes through. Once; then the record is closed.

        Args:
            take_over: id of a rollout that is dead and holds the lock.

        Raises:
            Refused: before anything is touched.
        """
        start = self._clock()
        outcome = "done"
        locked = False
        try:
            self._balancers.lock(take_over)
            locked = True
            for batch in self._batches():
                self._bring(batch)
            self._record.finish()
        except _Halt:
            outcome = "halted"
        except LockLost as lost:
            outcome, locked = "halted", False
            self._reasons.append(str(lost))
        except Failure as failure:
            outcome = "halted"
            self._reasons.append(str(failure))
        except KeyboardInterrupt:
            outcome = "interrupted"
            self._reasons += self._where()
        finally:
            if locked:
                self._reasons += self._balancers.unlock()
            self._record.close()
        return Result(self._claim.id, outcome, self._reasons, round(self._clock() - start, 1), self._results)

    # Before the first node

    def _batches(self) -> list[list[str]]:
        """Nodes that a rollout left in its midst come first. Those that have what they are to get are left out."""
        try:
            seen = {balancer: self._fleet.servers(balancer) for balancer in self._fleet.balancers}
            marked = {name for balancer in self._fleet.balancers for name in self._fleet.marked(balancer)}
        except Failure as failure:
            raise Refused([Problem(failure.host, "balancers", failure.what, failure.remedy)]) from None
        left = (marked | set(self._record.work)) & set(self._plans)
        known = {server.name for servers in seen.values() for server in servers}
        self._others = (marked - left) & known
        untouched = {node for node, step in self._record.work.items() if step in ("drain", "wait", "keep")}
        self._changed = left - untouched
        done = {node for node, plan in self._plans.items() if self._record.done.get(node) == plan.whole} - left
        todo = [node for node in self._plans if node in left]
        todo += [node for node in self._plans if node not in left | done]
        for node in done:
            self._results[node].outcome = "skipped"
        size = self._options.batch
        batches = [todo[start : start + size] for start in range(0, len(todo), size)]
        problems = [*self._unknown(todo, seen), *self._drained_by_hand(set(todo) - left, seen)]
        problems += [problem for batch in batches for problem in self._alone(batch, seen)]
        problems += [Problem(back.host, "balancers", back.what, back.remedy) for back in self._back()]
        if problems:
            raise Refused(problems)
        self._record.begin(self._claim.id)
        for balancer in self._fleet.without:
            left_out = "does not answer, and is left out: it is not to come back before this is over"
            self._reasons.append(f"{balancer}: {left_out}")
            self._say(Progress(0, len(self._plans), balancer, Step("balancers", 0, ok=True, detail=left_out)))
        for node in sorted(self._others):
            self._reasons.append(f"{node}: was left drained by a rollout before, and is no part of this one")
        return batches

    def _unknown(self, nodes: Sequence[str], seen: Mapping[str, list[Server]]) -> Iterator[Problem]:
        for node in nodes:
            for balancer, servers in seen.items():
                if not any(server.name == node for server in servers):
                    remedy = f"bring the balancers up to date first, or leave the node out: --exclude {node}"
                    yield Problem(node, "balancers", f"{balancer} has it in no pool", remedy)

    def _drained_by_hand(self, nodes: set[str], seen: Mapping[str, list[Server]]) -> Iterator[Problem]:
        for balancer, servers in seen.items():
            for server in servers:
                if server.name in nodes and server.away:
                    what = f"somebody has taken it out: it is {server.status} in {server.pool} at {balancer}"
                    remedy = f"set it ready there, --exclude {server.name}, or take it out of the inventory"
                    yield Problem(server.name, "balancers", what, remedy)

    def _alone(self, batch: Sequence[str], seen: Mapping[str, list[Server]]) -> Iterator[Problem]:
        for balancer, servers in seen.items():
            for pool in sorted({server.pool for server in servers if server.name in batch}):
                names = {server.name for server in servers if server.pool == pool}
                if len(names) == 1:
                    what = f"is the only node of {pool} at {balancer}: draining it would leave nobody to answer"
                    remedy = "add a node to the pool, or change this one in a maintenance window, with pyinfra itself"
                    yield Problem(batch[0] if len(batch) == 1 else names.pop(), "balancers", what, remedy)
                elif names <= set(batch):
                    what = f"a batch would take all {len(names)} nodes of {pool} at {balancer}"
                    yield Problem(batch[0], "batch", what, "make --batch smaller")
                elif not any(server.weight for server in servers if server.pool == pool and server.name not in batch):
                    what = f"the other nodes of {pool} have weight 0 at {balancer}: nobody would be left to answer"
                    yield Problem(batch[0], "balancers", what, GIVE_WEIGHT)

    # One batch

    def _bring(self, batch: list[str]) -> None:
        for node in batch:
            self._results[node].outcome = "in work"
        try:
            with self._step(batch, "drain"):
                self._balancers.hold()
                self._all_told()
                self._room(batch)
                self._mark(batch)
                self._balancers.set_state(batch, "drain")
            with self._step(batch, "wait"):
                self._waited = self._wait(batch)
            with self._step(batch, "keep"):
                self._all_told()
                for node in batch:
                    self._keep(node)
        except LockLost:
            raise
        except Failure as failure:
            self._reasons.append(f"{failure}. {self._release(batch)}")
            raise _Halt from None
        except KeyboardInterrupt:
            self._release(batch)
            raise
        failed: dict[str, Failure] = {}
        try:
            with self._step(batch, "change"):
                self._balancers.hold()
                self._changed |= set(batch)
                self._fleet.change(batch)
        except LockLost:
            raise
        except Failure as failure:
            failed = dict.fromkeys(batch, failure)
        for node in [node for node in batch if node not in failed]:
            try:
                with self._step([node], "verify"):
                    self._verify(node, self._plans[node].models, anew=True)
                    self._fleet.let_go(node, self._plans[node].hash)
                with self._step([node], "ready"):
                    self._ready(node)
                    self._leave(node, "done")
            except LockLost:
                raise
            except Failure as failure:
                failed[node] = failure
        for node, why in failed.items():
            self._reasons.append(f"{why}. {self._go_back(node)}")
        if failed:
            raise _Halt

    def _keep(self, node: str) -> None:
        # Which models answer now is what the former release has to do again, should it come back.
        asked = () if node in self._changed else self._plans[node].models
        models = [model for model in asked if self._answers(node, model)]
        kept = self._fleet.keep(node, models)
        self._models[node] = kept.models
        self._results[node].plan_before = kept.plan
        if not kept.fresh:
            self._changed.add(node)

    def _answers(self, node: str, model: str) -> bool:
        try:
            balancer, server = next(self._balancers.places(node))
            self._fleet.completion(balancer, server, model)
        except Failure:
            return False
        return True

    def _verify(self, node: str, models: Sequence[str], *, anew: bool) -> None:
        deadline = self._clock() + self._options.ready_seconds
        while amiss := self._amiss(node):
            if self._clock() >= deadline:
                what, remedy = amiss[0]
                raise Failure(node, f"{what}, {self._options.ready_seconds:.0f} s later", remedy)
            self._sleep(POLL)
        # From every balancer, since each has a way of its own to the node.
        for balancer in self._fleet.balancers:
            server = next(place for name, place in self._balancers.places(node) if name == balancer)
            for model in models:
                self._fleet.completion(balancer, server, model)
        if anew:
            balancer, server = next(self._balancers.places(node))
            self._fleet.prompts(balancer, server, models)
            self._fleet.host_checks(node)

    def _amiss(self, node: str) -> list[tuple[str, str]]:
        units = self._fleet.units(node)
        for unit, state in units:
            if state == "failed":
                raise Failure(node, f"{unit} is failed", f"see journalctl --unit {unit} there")
        found = [(f"{unit} is {state}", f"see journalctl --unit {unit} there") for unit, state in units]
        for balancer, server in self._balancers.places(node):
            if server.up:
                # A balancer that was restarted meanwhile has forgotten that the node is drained.
                self._fleet.set_state(balancer, [server], "drain")
            if not server.healthy:
                what = f"{balancer} sees it as {server} in {server.pool}"
                found.append((what, "see the node's proxy, its firewall, and the health check of the balancer"))
        return found

    def _ready(self, node: str) -> None:
        self._balancers.hold()
        # HAProxy lets a node begin slowly that comes out of maintenance, and not one that was drained. The first
        # request comes at once, and not after a check: that it answers has just been verified.
        self._balancers.set_state([node], "maint")
        self._balancers.set_state([node], "ready")
        deadline = self._clock() + self._options.ready_seconds
        while down := [(balancer, server) for balancer, server in self._balancers.places(node) if not server.up]:
            if self._clock() >= deadline:
                balancer, server = down[0]
                what = f"{balancer} still has it as {server} in {server.pool} after {self._options.ready_seconds:.0f} s"
                raise Failure(node, what, "see the health check of the balancer")
            self._sleep(POLL)

    # Undoing

    def _release(self, batch: Sequence[str]) -> str:
        """Bring nodes back that nothing has been done to. What became of them."""
        said = []
        for node in batch:
            if node in self._changed:
                self._results[node].outcome = "drained"
                said.append(f"{node} stays drained, as it was")
                continue
            try:
                self._balancers.set_state([node], "ready")
                if node in self._models:
                    # What was kept for this rollout is not what another is to bring back.
                    self._fleet.let_go(node, self._results[node].plan_before)
                self._leave(node, "untouched")
                said.append(f"{node} is unchanged, and has its requests again")
            except Failure as failure:
                self._results[node].outcome = "drained"
                said.append(f"{node} is unchanged, and may still be drained at {failure.host}: {failure.what}")
        return "; ".join(said)

    def _go_back(self, node: str) -> str:
        """Bring the former release of a node back. What became of it."""
        try:
            with self._step([node], "restore"):
                self._balancers.hold(patient=True)
                # It may have got requests already.
                self._balancers.set_state([node], "drain")
                self._wait([node])
                self._fleet.restore(node)
            with self._step([node], "verify the former release"):
                self._verify(node, self._models.get(node, ()), anew=False)
                self._fleet.let_go(node, self._results[node].plan_before)
            with self._step([node], "ready"):
                self._ready(node)
                self._leave(node, "restored")
        except LockLost:
            raise
        except Failure as failure:
            self._results[node].outcome = "drained"
            return (
                f"Its former release does not come up either ({failure.host}: {failure.what}): {node} stays drained; "
                "mend it, and run the same command again"
            )
        asked = "and answers" if self._models.get(node) else "though no model was known to answer before"
        return f"{node} has its former release back, {asked}, and has its requests again"

    def _leave(self, node: str, outcome: str) -> None:
        """A node serves again, and is no longer this rollout's."""
        result = self._results[node]
        self._record.leave(node, plan=self._plans[node].whole if outcome == "done" else None)
        result.outcome = outcome
        self._changed.discard(node)
        with suppress(Failure):  # at worst the next rollout begins with this node
            self._mark([])

    def _where(self) -> list[str]:
        """What an interrupted rollout leaves behind."""
        said = []
        for node, result in self._results.items():
            if result.outcome in ("in work", "drained"):
                result.outcome = "drained"
                step = self._record.work.get(node, "drain")
                said.append(f"{node}: drained, interrupted in the step {step!r}; run the same command again to go on")
        return said or ["interrupted; no node is drained; run the same command again to go on"]

    # At the balancers

    def _room(self, batch: Sequence[str]) -> None:
        """Wait until each pool has other nodes that are up, and none of them is down unasked."""
        deadline = self._clock() + _ROOM
        while True:
            short = list(self._short(batch))
            if not short:
                return
            if self._clock() >= deadline:
                raise short[0]
            self._sleep(POLL)

    def _short(self, batch: Sequence[str]) -> Iterator[Failure]:
        for balancer in self._fleet.balancers:
            servers = self._fleet.servers(balancer)
            for pool in sorted({server.pool for server in servers if server.name in batch}):
                others = [server for server in servers if server.pool == pool and server.name not in batch]
                for server in others:
                    if not server.up and not server.away:
                        what = f"not drained: {server.name} is {server} in {pool} at {balancer}"
                        remedy = f"see to {server.name} first, or set server {pool}/{server.name} state maint"
                        yield Failure(batch[0], what, remedy)
                if amiss := uncovered(pool, others, balancer):
                    yield Failure(batch[0], f"not drained: {amiss[0]}", amiss[1])

    def _back(self) -> Iterator[Failure]:
        """Balancers that were left out and answer: they know of no drain."""
        for balancer in self._fleet.without:
            if self._fleet.is_there(balancer):
                what = "is left out, and answers: it would send requests to a node that is being changed"
                yield Failure(balancer, what, f"leave --exclude {balancer} out, or switch it off")

    def _all_told(self) -> None:
        for back in self._back():
            raise back

    def _mark(self, batch: Sequence[str]) -> None:
        for node in batch:
            self._record.step(node, self._record.work.get(node, "drain"))
        for balancer in self._fleet.balancers:
            self._fleet.mark(balancer, sorted({*self._record.work, *self._others}))

    def _wait(self, batch: Sequence[str]) -> Waited:
        """Wait until nothing is in flight. What is cut when the time is over is written down."""
        waited = self._balancers.wait(batch, self._options.drain_seconds)
        for node, cut in waited.cut.items():
            self._results[node].cut += cut
        return waited

    # What is written down

    @contextmanager
    def _step(self, nodes: Sequence[str], name: str) -> Iterator[None]:
        if name in ("change", "verify", "restore"):
            for node in nodes:
                self._record.step(node, name)
        with timed(name, self._clock, lambda step: self._over(nodes, step)):
            yield

    def _over(self, nodes: Sequence[str], step: Step) -> None:
        names = list(self._plans)
        for node in nodes:
            result = self._results[node]
            own = Step(step.name, round(step.seconds, 1), step.ok, step.detail)
            if step.name == "wait" and step.ok:
                own.detail = self._waited.told(node, self._options.drain_seconds)
            result.steps.append(own)
            plans = {"plan_before": result.plan_before, "plan_after": result.plan_after}
            self._record.log(**entry(self._claim, node, own), **plans)
            self._say(Progress(names.index(node) + 1, len(names), node, own))
            if step.detail != INTERRUPTED:
                how = f"{own.name}: {'ok' if own.ok else 'failed'}{f': {own.detail}' if own.detail else ''}"
                change = f"plan {result.plan_before[:12] or 'unknown'} to {result.plan_after[:12]}"
                try:
                    self._fleet.note(node, f"rollout {self._claim.id} by {self._claim.who}: {how} ({change})")
                except Failure:  # it may be what has just failed
                    continue
