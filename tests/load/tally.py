"""What became of each request, and the figures that follow from it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["open", "ok", "refused", "failed", "truncated", "stopped"]
Kind = Literal["plain", "stream"]


@dataclass(slots=True)
class Request:
    """One request, from the moment it was due until its end. Times are seconds of `time.monotonic()`.

    Attributes:
        start: when it was due: waiting for a connection and opening it count.
        sent: when it was written; 0 if it never was.
        first_byte: of the answer; 0 if none came.
        first_word: of a stream, or the first byte of a plain answer; 0 if none came.
        gap: longest time between two parts of the answer, in seconds.
        status: HTTP status; 0 without an answer.
        asked: words that were asked for.
        words: words that came.
        connection: number of the connection.
        before: requests that this connection had served before this one.
        request_id: the server's X-Request-Id, to be found in its log.
        outcome: `ok`; `refused` (429 or 503 with Retry-After); `failed` (another status, no connection, no answer,
            time is up); `truncated` (an answer that began and is not whole); `stopped` (still on its way when the load
            generator was told to end, and so ended by itself).
        error: why, unless it is ok.
    """

    number: int
    kind: Kind
    asked: int
    start: float
    sent: float = 0.0
    first_byte: float = 0.0
    first_word: float = 0.0
    last_byte: float = 0.0
    end: float = 0.0
    gap: float = 0.0
    status: int = 0
    words: int = 0
    connection: int = 0
    before: int = 0
    request_id: str = ""
    outcome: Outcome = "open"
    error: str = ""

    @property
    def seconds(self) -> float:
        """From when it was due to its end."""
        return self.end - self.start

    @property
    def bad(self) -> bool:
        """Whether a user would complain: an answer that failed or is not whole."""
        return self.outcome in ("failed", "truncated")

    def __str__(self) -> str:
        after = f" on connection {self.connection} after {self.before} others" if self.connection else ""
        name = f", X-Request-Id {self.request_id}" if self.request_id else ""
        return (
            f"{self.kind} {self.number} {self.outcome} {self.seconds:.2f} s after its start at {self.start:.2f}"
            f"{after}, status {self.status}, {self.words} of {self.asked} words{name}: {self.error}"
        )


@dataclass(frozen=True)
class Figures:
    """Counts, and times in seconds, of one kind of request. Times are of those that are ok; NaN if none is."""

    requests: int
    ok: int
    refused: int
    failed: int
    truncated: int
    stopped: int
    words: int
    latency_p50: float
    latency_p99: float
    latency_max: float
    first_word_p50: float
    first_word_p99: float
    gap_p99: float
    gap_max: float


@dataclass(frozen=True)
class Summary:
    """What came of a load, or of a part of its time.

    Attributes:
        seconds: from the first start to the last end.
        requests_per_second: those that are ok, over `seconds`.
        connections: opened by the load generator since it started.
        lateness_p99, lateness_max: how late the load generator's own timers were, in seconds, since it started. What
            is not long beside it may be the load generator's own doing.
        cpu: share of one core that the load generator took.
        bad: those that failed or were truncated.
    """

    seconds: float
    requests_per_second: float
    plain: Figures
    streams: Figures
    connections: int
    lateness_p99: float
    lateness_max: float
    cpu: float
    bad: list[Request] = field(repr=False)

    @property
    def ok(self) -> int:
        """Number of requests that got what they asked for."""
        return self.plain.ok + self.streams.ok

    @property
    def refused(self) -> int:
        """Number of requests that were told to come again later."""
        return self.plain.refused + self.streams.refused

    @property
    def failed(self) -> int:
        """Number of requests without a whole answer for another reason."""
        return self.plain.failed + self.streams.failed

    @property
    def truncated(self) -> int:
        """Number of answers that began and are not whole."""
        return self.plain.truncated + self.streams.truncated

    def as_dict(self) -> dict[str, Any]:
        """For JSON: times in seconds to the microsecond, None where there is none, and at most 20 bad ones."""
        data: dict[str, Any] = _plain({**asdict(self), "bad": [asdict(request) for request in self.bad[:20]]})
        return {**data, "ok": self.ok, "refused": self.refused, "failed": self.failed, "truncated": self.truncated}

    def text(self) -> str:
        """A table for people, and below it what was wrong: how often, and the first of each kind."""
        names = ("requests", "ok", "refused", "failed", "truncated", "stopped", "words")
        seconds = (
            "latency_p50",
            "latency_p99",
            "latency_max",
            "first_word_p50",
            "first_word_p99",
            "gap_p99",
            "gap_max",
        )
        lines = [f"{'':16}{'plain':>12}{'streams':>12}"]
        for name in (*names, *seconds):
            values = [getattr(self.plain, name), getattr(self.streams, name)]
            lines.append(f"{name:16}" + "".join(f"{_cell(value):>12}" for value in values))
        lines.append(
            f"{self.requests_per_second:.1f} requests/s ok over {self.seconds:.1f} s, {self.connections} connections "
            f"opened; the load generator took {self.cpu:.0%} of a core, and was late itself by "
            f"{self.lateness_p99 * 1000:.0f} ms (p99), {self.lateness_max * 1000:.0f} ms (most)"
        )
        first: dict[tuple[str, str, str], Request] = {}
        times: Counter[tuple[str, str, str]] = Counter()
        for request in self.bad:
            reason = (request.kind, request.outcome, request.error)
            first.setdefault(reason, request)
            times[reason] += 1
        lines += [f"{number} times, first: {first[reason]}" for reason, number in times.most_common(20)]
        return "\n".join(lines)


def summarise(
    requests: Sequence[Request], *, connections: int, lateness_p99: float, lateness_max: float, cpu: float
) -> Summary:
    """Figures of requests that have ended."""
    ended = [request for request in requests if request.outcome != "open"]
    seconds = max((r.end for r in ended), default=0.0) - min((r.start for r in ended), default=0.0)
    ok = sum(request.outcome == "ok" for request in ended)
    return Summary(
        seconds=seconds,
        requests_per_second=ok / seconds if seconds else 0.0,
        plain=_figures([request for request in ended if request.kind == "plain"]),
        streams=_figures([request for request in ended if request.kind == "stream"]),
        connections=connections,
        lateness_p99=lateness_p99,
        lateness_max=lateness_max,
        cpu=cpu,
        bad=[request for request in ended if request.bad],
    )


def percentile(values: Iterable[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was measured. NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else math.nan


def parse(line: bytes) -> Request:
    """A request from a line of the load generator's record."""
    return Request(**json.loads(line))


def _figures(requests: Sequence[Request]) -> Figures:
    ok = [request for request in requests if request.outcome == "ok"]

    def count(outcome: Outcome) -> int:
        return sum(request.outcome == outcome for request in requests)

    def time(percent: float, of: Callable[[Request], float]) -> float:
        return percentile((of(request) for request in ok), percent)

    return Figures(
        requests=len(requests),
        ok=len(ok),
        refused=count("refused"),
        failed=count("failed"),
        truncated=count("truncated"),
        stopped=count("stopped"),
        words=sum(request.words for request in requests),
        latency_p50=time(50, lambda request: request.seconds),
        latency_p99=time(99, lambda request: request.seconds),
        latency_max=time(100, lambda request: request.seconds),
        first_word_p50=time(50, lambda request: request.first_word - request.start),
        first_word_p99=time(99, lambda request: request.first_word - request.start),
        gap_p99=time(99, lambda request: request.gap),
        gap_max=time(100, lambda request: request.gap),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


def _cell(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "-" if math.isnan(value) else f"{value * 1000:.1f} ms"
