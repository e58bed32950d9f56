"""A load, and the handle on it while it runs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.load.tally import Request, Summary, parse, summarise

CHECKOUT = Path(__file__).resolve().parents[2]


class LoadError(Exception):
    """The load generator itself went wrong, so nothing is known about the server."""


@dataclass(frozen=True)
class Load:
    """What is sent, and where to. All times are in seconds.

    `plain` connections each send a request, wait for the whole answer, and send the next; `streams` connections do the
    same with streamed answers. With a rate, requests are due at even intervals instead, whatever the answers take, and
    latency counts from when a request was due: one that has to wait for a free connection is slow, not absent.

    Attributes:
        ca: file with the certificates that the server's must be signed by; empty sends without TLS.
        server_name: name that the server's certificate must be for; empty compares none.
        key: API key; empty sends none.
        plain, plain_words, plain_rate: connections, words of each answer, and requests a second (0: as they can).
        streams, stream_words, stream_rate: the same for streams. The pace of the words is the engine's.
        new_connections: open a connection for each request, with `Connection: close`.
        ramp: time over which the connections are opened, evenly.
        timeout: longest time without a byte, for connecting and for an answer.
        pause: wait of a connection after a bad answer, doubled each time up to 8 s, as OpenAI's client does. After a
            refusal it waits as long as Retry-After says. With a rate there are no waits.
        finish: how long streams and requests that are on their way at the end may still take.
        limit: end after so many requests; 0: no limit.
        extra: more members of the request's body, such as `{"ignore_eos": True}` for an engine with a real model.
    """

    address: str
    port: int = 443
    ca: str = ""
    server_name: str = ""
    key: str = field(default="", repr=False)
    model: str = "tiny-llama"
    plain: int = 0
    plain_words: int = 1
    plain_rate: float = 0.0
    streams: int = 0
    stream_words: int = 60
    stream_rate: float = 0.0
    new_connections: bool = False
    ramp: float = 0.0
    timeout: float = 30.0
    pause: float = 0.5
    finish: float = 120.0
    limit: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


class Tally:
    """What has become of the requests so far. Can be asked at any time, while the load runs and after it.

    Whatever is asked, it is a LoadError if the load generator has died.
    """

    def __init__(self, record: Path, process: subprocess.Popen[bytes]) -> None:
        self._record = open(record, "rb")  # noqa: SIM115  closed with the load
        self._process = process
        self._rest = b""
        self._state: dict[str, float] = {}
        self._requests: list[Request] = []

    @property
    def requests(self) -> list[Request]:
        """All requests that have ended, in the order of their ends."""
        self._read()
        return self._requests

    @property
    def open(self) -> int:
        """Requests on their way, a tenth of a second ago at most."""
        self._read()
        return int(self._state.get("open", 0))

    @property
    def flowing(self) -> int:
        """Streams whose first word has come and whose end has not, a tenth of a second ago at most."""
        self._read()
        return int(self._state.get("flowing", 0))

    @property
    def bad(self) -> list[Request]:
        """Requests that failed or whose answer was not whole."""
        return [request for request in self.requests if request.bad]

    def count(self) -> Counter[str]:
        """How many requests have had which outcome."""
        return Counter(request.outcome for request in self.requests)

    def wait(self, until: Callable[[Tally], bool], seconds: float = 60.0) -> None:
        """Wait until something is true of the tally, such as `lambda tally: tally.flowing >= 5000`.

        Raises:
            LoadError: it is not after so many seconds, or the load has ended.
        """
        end = time.monotonic() + seconds
        while not until(self):
            if self._process.poll() is not None:
                raise LoadError("the load has come to its limit")
            if time.monotonic() > end:
                bad = "".join(f"\n{request}" for request in self.bad[-3:])
                raise LoadError(
                    f"waited {seconds:g} s: {self.open} open, {self.flowing} flowing, {dict(self.count())}{bad}"
                )
            time.sleep(0.05)

    def summary(self, since: float = -math.inf, until: float = math.inf) -> Summary:
        """Figures of the requests that started in a time, in seconds of `time.monotonic()`; of all if none is given."""
        chosen = [request for request in self.requests if since <= request.start < until]
        return summarise(
            chosen,
            connections=int(self._state.get("connections", 0)),
            lateness_p99=self._state.get("lateness_p99", 0.0),
            lateness_max=self._state.get("lateness_max", 0.0),
            cpu=self._state.get("cpu", 0.0),
        )

    def _read(self) -> None:
        if self._record.closed:
            return
        if code := self._process.poll():
            raise LoadError(f"the load generator ended with {code}; what it said stands above")
        self._take()

    def _take(self) -> None:
        *lines, self._rest = (self._rest + self._record.read()).split(b"\n")
        for line in lines:
            if line.startswith(b'{"state"'):
                self._state = json.loads(line)["state"]
            else:
                self._requests.append(parse(line))

    def _close(self) -> None:
        self._take()
        self._record.close()


@contextmanager
def running(load: Load, *, via: Sequence[str] = ()) -> Iterator[Tally]:
    """Run a load in a process of its own, beside what stands in the `with`.

    At the end no new request is sent, and those on their way come to their end, `load.finish` seconds at most. When
    what stands in the `with` fails, the load is cut off.

    Args:
        via: words before the command, such as those that run it in the network of another host.

    Raises:
        LoadError: the load generator itself went wrong.
    """
    with tempfile.TemporaryDirectory(prefix="quench-load-") as folder:
        record = Path(folder) / "record"
        record.touch()
        # A process and not a thread: what the test does meanwhile must not show in the times.
        process = subprocess.Popen(
            [*via, sys.executable, "-m", "tests.load.generator", str(record)], stdin=subprocess.PIPE, cwd=CHECKOUT
        )
        tally = Tally(record, process)
        assert process.stdin
        try:
            process.stdin.write(f"{json.dumps(asdict(load))}\n".encode())
            process.stdin.flush()
            yield tally
            process.stdin.close()
            if code := process.wait(load.finish + 30):
                raise LoadError(f"the load generator ended with {code}; what it said stands above")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if not process.stdin.closed:
                process.stdin.close()
            tally._close()
