"""What a running HAProxy says of its servers, and how it is told to leave one alone.

The admin socket is described in HAProxy's management guide, chapter 9.3, and the columns of `show stat` in 9.1.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

# 9.1, column `type`: a server, and not a frontend, a backend or a socket.
_SERVER = "2"
_PASSED = ("L4OK", "L6OK", "L7OK", "L7OKC")

State = Literal["drain", "maint", "ready"]


@dataclass(frozen=True)
class Server:
    """A node in a pool of a balancer.

    Args:
        pool: name of the backend.
        name: name of the server, which is the node's.
        status: `UP`, `DOWN`, `DRAIN`, `MAINT`, `no check`; while checks change their mind, `UP 2/3` or `DOWN 1/2`.
        check: result of the last health check, such as L7OK. Empty: there are no checks.
        in_flight: requests that it works on.
        waiting: requests that wait for it alone.
        weight: its share of the requests; of one that has come up a moment ago, as far as that has grown by now.
        address: ADDRESS:PORT.
    """

    pool: str
    name: str
    status: str
    check: str = ""
    in_flight: int = 0
    waiting: int = 0
    weight: int = 1
    address: str = ""

    @property
    def up(self) -> bool:
        """Whether it gets new requests, and nothing speaks against that."""
        return self.status == "UP"

    @property
    def covers(self) -> bool:
        """Whether others can do without theirs: one of weight 0 is up, and gets nothing."""
        return self.up and self.weight > 0

    @property
    def away(self) -> bool:
        """Whether somebody has taken it out."""
        return self.status.startswith(("DRAIN", "MAINT"))

    @property
    def healthy(self) -> bool:
        """Whether its health checks pass, be it drained or not."""
        return self.check in _PASSED and self.status.startswith(("UP", "DRAIN"))

    def __str__(self) -> str:
        return f"{self.status} ({self.check})" if self.check else self.status


def servers(lines: Iterable[str]) -> list[Server]:
    """The servers in the answer to `show stat`.

    Raises:
        ValueError: if it is no such answer.
    """
    text = [line for line in lines if line.strip()]
    if not text or not text[0].startswith("# pxname,"):
        raise ValueError(text[0] if text else "no answer")
    rows = csv.DictReader([text[0].removeprefix("# "), *text[1:]])
    return [
        Server(
            pool=row["pxname"],
            name=row["svname"],
            status=row["status"],
            # A star stands before the last result while the next check is under way.
            check=row["check_status"].removeprefix("* "),
            in_flight=int(row["scur"] or 0),
            waiting=int(row["qcur"] or 0),
            weight=int(row["weight"] or 0),
            address=row["addr"],
        )
        for row in rows
        if row["type"] == _SERVER
    ]


def set_state(chosen: Iterable[Server], state: State) -> str:
    """The command that gives servers a state. Its answer is empty if all is well."""
    return "; ".join(f"set server {server.pool}/{server.name} state {state}" for server in chosen)
