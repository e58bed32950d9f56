"""What the controller remembers of a rollout: where it is, for the run after a crash, and who did what."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quench.problems import Problem, Refused


@dataclass(frozen=True)
class Claim:
    """Whose a rollout is. `since` is a time in UTC, as ISO 8601 has it."""

    id: str
    who: str
    source: str
    since: str

    def __str__(self) -> str:
        return f"rollout {self.id} of {self.who} on {self.source}, since {self.since}"

    def to_json(self) -> str:
        """One line, for the lock on a balancer."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Claim:
        """The claim in a lock. A lock that cannot be read has somebody unknown as its holder."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError):
            return cls("unknown", "somebody", "an unknown host", "an unknown time")


@dataclass
class _Content:
    id: str = ""
    finished: bool = True
    # What secrets are hashed with, so that no hash of theirs is that of another machine, or of another fleet.
    salt: str = field(default_factory=lambda: secrets.token_hex(16))
    # The plan of each node that is done, as hashes, and the step of each that is in work.
    done: dict[str, str] = field(default_factory=dict)
    work: dict[str, str] = field(default_factory=dict)


class Record:
    """The state of a rollout in NAME.json, and its history in NAME.log, a JSON object a line.

    Held by one process at a time.

    Args:
        folder: it is made, and is nobody else's.
        name: one for each fleet.

    Raises:
        Refused: if another process of this machine holds it, or the file cannot be read.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = folder / f"{name}.json"
        self._history = folder / f"{name}.log"
        self._lock = (folder / f"{name}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            what = f"another process of this machine works on the rollout {name!r}"
            raise Refused([Problem("this machine", "rollout", what, "wait for it, or stop it with Ctrl-C")]) from None
        self._content = _Content()
        if self._path.exists():
            try:
                self._content = _Content(**json.loads(self._path.read_text()))
            except (TypeError, ValueError):
                self.close()
                remedy = "delete it: nodes that are in work are found on the balancers, and all nodes are brought anew"
                raise Refused([Problem("this machine", "rollout", f"{self._path} is damaged", remedy)]) from None

    @property
    def folder(self) -> Path:
        """Where the output of the runs goes."""
        return self._path.with_suffix(".runs")

    @property
    def unfinished(self) -> str:
        """The id of a rollout that did not come to its end; empty if there is none."""
        return "" if self._content.finished else self._content.id

    @property
    def done(self) -> dict[str, str]:
        """The plan of each node that is done, as hashes, in a rollout that is unfinished."""
        return {} if self._content.finished else dict(self._content.done)

    @property
    def salt(self) -> bytes:
        """What secrets are hashed with. It stays the same from rollout to rollout."""
        return bytes.fromhex(self._content.salt)

    @property
    def work(self) -> dict[str, str]:
        """The step of each node that is in work."""
        return dict(self._content.work)

    def begin(self, rollout: str) -> None:
        """Start a rollout, or go on with the one of this id."""
        if self.unfinished != rollout:
            self._content = _Content(rollout, salt=self._content.salt)
        self._content.finished = False
        self._save()

    def step(self, node: str, step: str) -> None:
        """A node has come to a step."""
        self._content.work[node] = step
        self._content.done.pop(node, None)
        self._save()

    def leave(self, node: str, *, plan: str | None = None) -> None:
        """A node serves again. plan: its new release, as hashes; None: it has its former one."""
        self._content.work.pop(node, None)
        if plan is not None:
            self._content.done[node] = plan
        self._save()

    def finish(self) -> None:
        """All nodes are done."""
        self._content.finished = True
        self._save()

    def log(self, **values: Any) -> None:
        """Append a line to the history."""
        with os.fdopen(os.open(self._history, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a") as file:
            file.write(json.dumps(values) + "\n")

    def close(self) -> None:
        """Let another process have it."""
        self._lock.close()

    def _save(self) -> None:
        new = self._path.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_TRUNC | os.O_CREAT, 0o600), "w") as file:
            json.dump(asdict(self._content), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
