"""A node leaves its fleet for good: it gets no more requests, and what it may not keep is taken away.

Until the wipe begins all of it can be undone, and is if something fails. From then on the same command goes on where it
stopped. What hosts are asked, and how, is behind `Site`.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import gevent
from cryptography import x509

from quench.haproxy import Server
from quench.problems import Problem, Refused
from quench.rollout_fleet import (
    INTERRUPTED,
    Balancers,
    Failure,
    Fleet,
    LockLost,
    Progress,
    Step,
    entry,
    timed,
    uncovered,
)
from quench.rollout_record import Claim, Record

# Where the engines have their weights, and all that they write.
MODELS = "/srv/models"
CACHES = ("/var/cache/vllm", "/var/lib/vllm")


@dataclass(frozen=True)
class Found:
    """Something on a node that it may not keep.

    Args:
        kind: `unit`: it runs, or would after a boot; `secret`; `data`: weights or caches; and what is not touched:
            `elsewhere`: a link out of their folders, `shared`: such a folder where other hosts may have theirs.
        name: the unit, or a path.
        detail: the unit's state, where the link leads, or the type of the file system.
        size: in bytes.
    """

    kind: str
    name: str
    detail: str = ""
    files: int = 0
    size: int = 0

    @property
    def amiss(self) -> tuple[str, str]:
        """What is to be said of it after a wipe, and what to do."""
        if self.kind == "unit":
            return f"{self.name} is still {self.detail}", f"see journalctl --unit {self.name} there"
        if self.kind == "elsewhere":
            return f"{self.name} leads to {self.detail}, which was not touched", "remove what is there, and the link"
        if self.kind == "shared":
            return f"{self.name} is on {self.detail}, where other hosts may have theirs", "unmount it"
        return f"{self.name} is still there", "log in and look"


@dataclass(frozen=True)
class Certificate:
    """A certificate that a node shows to others: `serial` in hex, `expires` as a date in UTC."""

    path: str
    serial: str
    expires: str

    @classmethod
    def read(cls, path: str, pem: bytes) -> Certificate | None:
        """The first of a file; None if that is no certificate, or the one of a CA."""
        try:
            first = x509.load_pem_x509_certificates(pem)[0]
            if first.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
                return None
        except ValueError:
            return None
        except x509.ExtensionNotFound:
            pass
        return cls(path, f"{first.serial_number:X}", first.not_valid_after_utc.date().isoformat())


@dataclass(frozen=True)
class Leaving:
    """A node that leaves, as the inventory describes it.

    Args:
        roles, units: what stays there: the way in, and what keeps it closed.
        secrets: names of what it was given and others may not know.
        certificates: those that it was given.
        todo: what is left to the operator.
    """

    name: str
    roles: Sequence[str]
    units: Sequence[str]
    secrets: Sequence[str]
    certificates: Sequence[Certificate]
    todo: Sequence[str]


class Site(Fleet, Protocol):
    """What is asked of hosts beside what a rollout asks. Every method raises Failure as well."""

    def remains(self, node: Leaving) -> tuple[list[Found], list[Certificate]]:
        """What is there that it may not keep, and its certificates."""

    def wipe(self, node: Leaving) -> list[str]:
        """Stop its services and take it away. File systems whose disks were told that the blocks are free."""


@dataclass(frozen=True)
class Options:
    """How a node leaves.

    Args:
        drain_seconds: longest wait for open answers.
        last: its pools may be left without anybody.
        unreachable: it does not answer; the balancers alone are told.
    """

    drain_seconds: float = 660
    last: bool = False
    unreachable: bool = False


@dataclass
class Result:
    """What became of it.

    Args:
        outcome: `done`, `nothing to do`, `unwiped` (out of the fleet, and it still has what it had), `halted` or
            `interrupted`; the last three with the reasons, a line each.
        cut: requests that were still in flight when the time for them was over.
        stopped: units.
        left: what it may not keep, and still has.
        stays: what it keeps, in words.
        todo: what is left to the operator, in words.
    """

    node: str
    outcome: str = ""
    reasons: list[str] = field(default_factory=list)
    seconds: float = 0
    cut: int = 0
    steps: list[Step] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    removed: list[Found] = field(default_factory=list)
    trimmed: list[str] = field(default_factory=list)
    left: list[Found] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)
    certificates: list[Certificate] = field(default_factory=list)
    todo: list[str] = field(default_factory=list)

    @property
    def code(self) -> int:
        """Exit code of the command."""
        return {"done": 0, "nothing to do": 0, "unwiped": 1, "halted": 1, "interrupted": 130}[self.outcome]


class _Halt(Exception):
    """It ends here; the reasons are written down."""


class Decommission:
    """One node that leaves.

    Args:
        say: is told each step when it is over.
        confirm: is shown what will go, and says whether the operator means it.
        clock, sleep: of seconds.
    """

    def __init__(
        self,
        fleet: Site,
        record: Record,
        claim: Claim,
        node: Leaving,
        options: Options,
        *,
        say: Callable[[Progress], None],
        confirm: Callable[[Sequence[Found]], bool],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = gevent.sleep,
    ) -> None:
        self._fleet, self._record, self._claim, self._node, self._options = fleet, record, claim, node, options
        self._say, self._confirm, self._clock = say, confirm, clock
        self._balancers = Balancers(fleet, claim, clock=clock, sleep=sleep)
        self._result = Result(node.name)
        self._locked = False
        self._found: list[Found] = []
        # Why it does not answer.
        self._silent = ""
        # Balancer and pool, where it had requests before.
        self._served: set[tuple[str, str]] = set()

    def run(self, *, take_over: str = "") -> Result:
        """Take the node out. Once; then the record is closed.

        Args:
            take_over: id of a rollout that is dead and holds the lock.

        Raises:
            Refused: before anything is touched.
        """
        start = self._clock()
        try:
            self._result.outcome = self._attempt(take_over)
            self._result.seconds = round(self._clock() - start, 1)
            self._write_down()
        finally:
            self._record.close()
        return self._result

    def _attempt(self, take_over: str) -> str:
        reasons = self._result.reasons
        try:
            self._check(take_over)
            return self._leave()
        except _Halt:
            return "halted"
        except LockLost as lost:
            self._locked = False
            reasons.append(str(lost))
            return "halted"
        except Failure as failure:
            reasons.append(f"{failure}. Run the same command again")
            return "halted"
        except KeyboardInterrupt:
            reasons += [] if reasons else ["interrupted; nothing was changed"]
            return "interrupted"
        finally:
            if self._locked:
                reasons += self._balancers.unlock()

    # Before anything is touched

    def _check(self, take_over: str) -> None:
        problems: list[Problem] = []
        try:
            self._balancers.lock(take_over)
            self._locked = True
        except Refused as refused:
            problems += refused.problems
        known = {problem.host for problem in problems}
        for balancer in self._fleet.balancers:
            # One that does not answer takes its time to do so.
            if balancer in known:
                continue
            try:
                problems += self._at(balancer)
            except Failure as failure:
                problems.append(Problem(balancer, "balancers", failure.what, failure.remedy))
        problems += self._at_the_node()
        if problems:
            raise Refused(problems)

    def _at(self, balancer: str) -> Iterator[Problem]:
        """Why a balancer cannot do without the node."""
        name, servers = self._node.name, self._fleet.servers(balancer)
        mine = [server for server in servers if server.name == name]
        if not mine:
            remedy = "bring the balancers up to date first: deploys/balancer.py"
            yield Problem(name, "balancers", f"{balancer} has it in no pool", remedy)
        # Where it is out already it makes no difference any more.
        for server in [] if self._options.last else [server for server in mine if not server.away]:
            others = [other for other in servers if other.pool == server.pool and other.name != name]
            if not others:
                what = f"is the only node of {server.pool} at {balancer}: nobody would be left to answer"
                yield Problem(name, "balancers", what, "add a node to the pool; if this is what you want: --last")
            elif amiss := uncovered(server.pool, others, balancer):
                yield Problem(name, "balancers", amiss[0], f"{amiss[1]}; if this is what you want: --last")

    def _at_the_node(self) -> Iterator[Problem]:
        try:
            self._found, self._result.certificates = self._fleet.remains(self._node)
        except Failure as failure:
            self._silent = failure.what
            self._result.certificates = list(self._node.certificates)
            if not self._options.unreachable:
                yield Problem(self._node.name, "node", failure.what, f"{failure.remedy}; if it is dead: --unreachable")
            return
        if self._options.unreachable:
            yield Problem(self._node.name, "node", "answers, so that it can be wiped", "leave --unreachable out")

    # The way out

    def _leave(self) -> str:
        """What became of it, if nothing fails."""
        outcome = "done"
        if not self._found and all(_closed(server) for _, server in self._balancers.places(self._node.name)):
            outcome = "nothing to do"
        else:
            if not self._confirm(self._found):
                what, remedy = "what was typed is not its name", f"type {self._node.name}, or say --yes"
                raise Refused([Problem(self._node.name, "confirmation", what, remedy)])
            self._close()
            if self._options.unreachable:
                self._unmark()
            else:
                self._wipe()
        if self._options.unreachable:
            outcome = "unwiped"
            self._result.reasons.append(self._unwiped())
        else:
            self._result.stays = [
                "logs in /var/log and in the journal: they are records",
                "programs, and configuration without secrets",
                f"the way in and what keeps it closed: {', '.join(self._node.units)}",
            ]
        self._result.todo = [*self._node.todo, *map(_revoke, self._result.certificates)]
        return outcome

    def _close(self) -> None:
        """No balancer sends it requests any more, or asks after its health."""
        name = self._node.name
        try:
            with self._step("drain"):
                self._balancers.hold()
                # It may have taken the operator a while to confirm.
                if alone := [problem for balancer in self._fleet.balancers for problem in self._at(balancer)]:
                    raise Failure(name, alone[0].what, alone[0].remedy)
                places = self._balancers.places(name)
                self._served = {(balancer, server.pool) for balancer, server in places if not server.away}
                self._balancers.set_state([name], "drain", lambda balancer, server: not server.away)
            with self._step("wait") as step:
                waited = self._balancers.wait([name], self._options.drain_seconds)
                self._result.cut = waited.cut[name]
                step.detail = waited.told(name, self._options.drain_seconds)
            with self._step("maintenance"):
                self._balancers.hold()
                self._balancers.set_state([name], "maint", lambda balancer, server: not _closed(server))
                for balancer, server in self._balancers.places(name):
                    if not _closed(server):
                        raise Failure(name, f"{balancer} still has it as {server} in {server.pool}", "look at it there")
        except LockLost:
            raise
        except Failure as failure:
            self._result.reasons.append(f"{failure}. {self._open()}")
            raise _Halt from None
        except KeyboardInterrupt:
            self._result.reasons.append(f"interrupted; {self._open()}")
            raise

    def _open(self) -> str:
        """Give it its requests back, where it had them. What became of it."""
        name = self._node.name
        try:
            self._balancers.set_state([name], "ready", lambda balancer, server: (balancer, server.pool) in self._served)
        except Failure as failure:
            return f"nothing was removed; {name} may still be out at {failure.host}: {failure.what}"
        return f"nothing was removed; {name} {'has its requests again' if self._served else 'is out, as it was'}"

    def _wipe(self) -> None:
        again = f"{self._node.name} is out of the fleet, and part of it may be gone: run the same command again"
        try:
            with self._step("wipe"):
                self._balancers.hold()
                self._unmark()
                self._result.trimmed = self._fleet.wipe(self._node)
            with self._step("verify"):
                self._count()
                if self._result.left:
                    raise Failure(self._node.name, *self._result.left[0].amiss)
        except LockLost:
            raise
        except Failure as failure:
            with suppress(Failure):  # it may be what does not answer
                self._count()
            left = [str(Problem(self._node.name, "verify", *found.amiss)) for found in self._result.left]
            self._result.reasons += [*dict.fromkeys([str(failure), *left]), again]
            raise _Halt from None
        except KeyboardInterrupt:
            self._result.reasons.append(f"interrupted; {again}")
            raise

    def _count(self) -> None:
        """What has gone, and what has not."""
        self._result.left, _ = self._fleet.remains(self._node)
        left = {(found.kind, found.name) for found in self._result.left}
        gone = [found for found in self._found if (found.kind, found.name) not in left]
        self._result.stopped = [found.name for found in gone if found.kind == "unit"]
        self._result.removed = [found for found in gone if found.kind in ("secret", "data")]

    def _unmark(self) -> None:
        """A rollout that left it in its midst is not to go on with it."""
        name = self._node.name
        for balancer in self._fleet.balancers:
            marked = self._fleet.marked(balancer)
            if name in marked:
                self._fleet.mark(balancer, sorted(set(marked) - {name}))
        if name in self._record.work:
            self._record.leave(name)

    def _unwiped(self) -> str:
        secrets = ", ".join(self._node.secrets) or "secrets"
        return (
            f"{self._node.name}: was not wiped: {self._silent}; it may still have {secrets}, the weights in {MODELS}, "
            "its former release and its logs, and serves again when it comes up: destroy or erase its disks, replace "
            "these secrets; or run the same command without --unreachable when it answers"
        )

    # What is written down

    @contextmanager
    def _step(self, name: str) -> Iterator[Step]:
        with timed(name, self._clock, self._over) as step:
            yield step

    def _over(self, step: Step) -> None:
        step.seconds = round(step.seconds, 1)
        self._result.steps.append(step)
        self._record.log(**entry(self._claim, self._node.name, step))
        self._say(Progress(1, 1, self._node.name, step))
        if step.detail != INTERRUPTED:
            self._note(f"{step.name}: {'ok' if step.ok else 'failed'}{f': {step.detail}' if step.detail else ''}")

    def _write_down(self) -> None:
        result = self._result
        stopped, removed = " ".join(result.stopped), " ".join(found.name for found in result.removed)
        became = "; ".join([result.outcome, *result.reasons])
        end = Step("decommission", result.seconds, ok=result.code == 0, detail=became)
        self._record.log(**entry(self._claim, self._node.name, end), stopped=stopped, removed=removed)
        if stopped or removed:
            self._note(f"stopped {stopped or 'nothing'}; removed {removed or 'nothing'}")

    def _note(self, text: str) -> None:
        if not self._silent:
            with suppress(Failure):  # it may be what has just failed
                self._fleet.note(self._node.name, f"{self._claim.id} by {self._claim.who}: {text}")


def parse(lines: Iterable[str]) -> tuple[list[Found], list[Certificate]]:
    """What `decommission.sh ask` says.

    Raises:
        ValueError: if it says something else.
    """
    found, certificates = [], []
    for line in lines:
        kind, _, rest = line.partition(" ")
        if kind == "unit":
            name, state = rest.split(" ")
            found.append(Found(kind, name, state))
        elif kind == "secret":
            size, path = rest.split(" ", 1)
            found.append(Found(kind, path, size=int(size)))
        elif kind == "data":
            files, size, path = rest.split(" ", 2)
            found.append(Found(kind, path, files=int(files), size=int(size)))
        elif kind == "elsewhere":
            link, target = rest.split(" -> ", 1)
            found.append(Found(kind, link, target))
        elif kind == "shared":
            system, path = rest.split(" ", 1)
            found.append(Found(kind, path, system))
        elif kind == "certificate":
            text, path = rest.split(" ", 1)
            if (certificate := Certificate.read(path, base64.b64decode(text))) is not None:
                certificates.append(certificate)
        else:
            raise ValueError(line)
    return found, certificates


def _closed(server: Server) -> bool:
    return server.status.startswith("MAINT")


def _revoke(certificate: Certificate) -> str:
    return (
        f"if its CA keeps a revocation list, have the certificate {certificate.path} revoked: serial "
        f"{certificate.serial}, good until {certificate.expires}"
    )
