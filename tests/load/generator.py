"""The process that sends the requests: asyncio, HTTP/1.1, TLS 1.3. Started by `running`, which talks to it.

On its standard input it gets a load as one line of JSON, and works until the input ends. What became of each
request goes to the file that it is given, a line of JSON each, and its own state ten times a second.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import select
import ssl
import sys
import time
from asyncio import sslproto
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, TextIO

from tests.load.answer import Answer, Events, Malformed, words_of
from tests.load.load import Load
from tests.load.tally import Kind, Outcome, Request

CHAT = "/v1/chat/completions"
_TICK = 0.1
# Handshakes at the same time. More would only wait for each other, and time out by the load generator's own fault.
_OPENING = 64
_LONGEST_PAUSE = 8.0
_FIELDS = [field.name for field in fields(Request)]
_clock = time.monotonic


class Connection:
    """A connection that may carry one request after another."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer
        self.socket = writer.get_extra_info("socket")
        self.served = 0
        self.timed_out = False

    def usable(self) -> bool:
        """Whether the server has left it open while it was idle. httpx asks the same before it sends."""
        if self.socket.fileno() < 0 or self.writer.is_closing() or self.reader.at_eof():
            return False
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        # Between answers there is nothing to read but an end.
        return not poll.poll(0)

    def abort(self) -> None:
        self.writer.transport.abort()


@dataclass(slots=True)
class State:
    """What the load generator says of itself while it works. Times are in seconds.

    Attributes:
        open: requests on their way.
        flowing: streams whose first word has come and whose end has not.
        connections: opened so far.
        lateness_p99, lateness_max: how late its own timers were.
        cpu: share of one core so far.
    """

    open: int = 0
    flowing: int = 0
    connections: int = 0
    lateness_p99: float = 0.0
    lateness_max: float = 0.0
    cpu: float = 0.0


class Generator:
    """Sends a load and hands each finished request to `record`."""

    def __init__(
        self, load: Load, record: Callable[[Request], None], report: Callable[[State], None] = lambda state: None
    ) -> None:
        self.load = load
        self.state = State()
        self._record = record
        self._report = report
        self._stopping = False
        self._started = 0
        self._idle: set[asyncio.Task[None]] = set()
        self._waiting: dict[Connection, Request] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._next: dict[Kind, float] = {}
        self._opening = asyncio.Semaphore(_OPENING)
        self._context = _context(load)
        self._bytes: dict[Kind, bytes] = {
            "plain": _request(load, load.plain_words, stream=False),
            "stream": _request(load, load.stream_words, stream=True),
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop` or until as many have been sent as were asked for, and let those on their way end."""
        begin = _clock()
        self._next = {"plain": begin, "stream": begin}
        numbers: list[tuple[Kind, int]] = [("plain", self.load.plain), ("stream", self.load.streams)]
        kinds = [kind for kind, number in numbers for _ in range(number)]
        step = self.load.ramp / max(1, len(kinds))
        ticker = asyncio.create_task(self._tick())
        workers = [asyncio.create_task(self._work(kind, begin + i * step)) for i, kind in enumerate(kinds)]
        everything = asyncio.gather(*workers)
        stopped: asyncio.Future[Any] = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({everything, stopped, ticker}, return_when=asyncio.FIRST_COMPLETED)
            self._stopping = True
            for task in list(self._idle):
                task.cancel()
            await asyncio.wait(workers, timeout=self.load.finish)
        finally:
            stopped.cancel()
            for task in workers:
                task.cancel()
            results = await asyncio.gather(*workers, return_exceptions=True)
            with suppress(asyncio.CancelledError, Exception):
                await everything
            if self._closing:
                await asyncio.wait(self._closing, timeout=2)
            ticker.cancel()
            results += await asyncio.gather(ticker, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _work(self, kind: Kind, begin: float) -> None:
        """Send one request after the other."""
        connection: Connection | None = None
        rate = self.load.plain_rate if kind == "plain" else self.load.stream_rate
        asked = self.load.plain_words if kind == "plain" else self.load.stream_words
        failures = 0
        try:
            await self._sleep_until(begin)
            while not self._stopping and (not self.load.limit or self._started < self.load.limit):
                self._started += 1
                due = _clock()
                if rate:
                    due = max(self._next[kind], begin)
                    self._next[kind] = due + 1 / rate
                    await self._sleep_until(due)
                request = Request(self._started, kind, asked, due)
                self.state.open += 1
                try:
                    connection, pause = await self._exchange(request, connection)
                finally:
                    self.state.open -= 1
                    self.state.flowing -= bool(request.first_word) and kind == "stream"
                    request.end = _clock()
                    self._record(request)
                failures = failures + 1 if request.bad else 0
                if request.bad:
                    pause = min(self.load.pause * 2 ** (failures - 1), _LONGEST_PAUSE)
                if pause and not rate:
                    await self._sleep_until(_clock() + pause)
        finally:
            if connection:
                self._close(connection)

    async def _exchange(self, request: Request, connection: Connection | None) -> tuple[Connection | None, float]:
        """Send a request and read its answer to the end. Gives the connection if it can go on, and a pause."""
        try:
            if connection and not connection.usable():
                self._close(connection)
                connection = None
            if connection is None:
                connection = await self._connect()
        except (OSError, TimeoutError) as problem:
            request.outcome, request.error = "failed", f"no connection: {problem!r}"
            return None, 0.0
        except asyncio.CancelledError:
            request.outcome, request.error = "stopped", "while the connection was opened"
            raise
        request.connection, request.before = connection.number, connection.served
        answer, events, body, error = Answer(), Events(), bytearray(), ""
        request.sent = request.last_byte = _clock()
        self._waiting[connection] = request
        try:
            connection.writer.write(self._bytes[request.kind])
            while not answer.complete:
                data = await connection.reader.read(65536)
                if not data:
                    answer.closed()
                    error = "the server closed the connection"
                    break
                self._heard(request)
                part = answer.feed(data)
                if answer.status == 200 and request.kind == "stream":
                    events.feed(part)
                    self._count(request, events.words)
                else:
                    body += part
        except (OSError, Malformed) as problem:
            error = repr(problem)
        except asyncio.CancelledError:
            request.outcome, request.error = "stopped", "by the load generator's own end"
            request.status = answer.status
            connection.abort()
            raise
        finally:
            del self._waiting[connection]
        if connection.timed_out:
            error = f"no byte for {self.load.timeout:g} s"
        connection.served += 1
        request.status = answer.status
        request.request_id = answer.headers.get("x-request-id", "")
        request.outcome, request.error = _outcome(request, answer, events, bytes(body), error, connection.timed_out)
        pause = _retry_after(answer) if request.outcome == "refused" else 0.0
        if answer.reusable and not self.load.new_connections:
            return connection, pause
        if answer.complete:
            self._close(connection)
        else:
            connection.abort()
        return None, pause

    def _heard(self, request: Request) -> None:
        now = _clock()
        if request.first_byte:
            request.gap = max(request.gap, now - request.last_byte)
        else:
            request.first_byte = now
            if request.kind == "plain":
                request.first_word = now
        request.last_byte = now

    def _count(self, request: Request, words: int) -> None:
        if words and not request.first_word:
            request.first_word = request.last_byte
            self.state.flowing += 1
        request.words = words

    async def _connect(self) -> Connection:
        async with self._opening, asyncio.timeout(self.load.timeout):
            reader, writer = await asyncio.open_connection(
                self.load.address,
                self.load.port,
                ssl=self._context,
                server_hostname=(self.load.server_name or self.load.address) if self._context else None,
            )
        self.state.connections += 1
        return Connection(self.state.connections, reader, writer)

    def _close(self, connection: Connection) -> None:
        async def close() -> None:
            connection.writer.close()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await connection.writer.wait_closed()
            connection.abort()

        task = asyncio.create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _sleep_until(self, due: float) -> None:
        task = asyncio.current_task()
        assert task
        self._idle.add(task)
        try:
            if self._stopping:
                raise asyncio.CancelledError
            await asyncio.sleep(due - _clock())
        finally:
            self._idle.discard(task)

    async def _tick(self) -> None:
        """Keep the time limit, and the state."""
        lateness: list[float] = []
        begin, used = _clock(), time.process_time()
        while True:
            due = _clock() + _TICK
            await asyncio.sleep(_TICK)
            now = _clock()
            lateness.append(now - due)
            for connection, request in self._waiting.items():
                if now - request.last_byte > self.load.timeout:
                    connection.timed_out = True
                    connection.abort()
            self.state.cpu = (time.process_time() - used) / (now - begin)
            self.state.lateness_max = max(lateness)
            self.state.lateness_p99 = sorted(lateness)[len(lateness) * 99 // 100]
            self._report(self.state)


def _outcome(
    request: Request, answer: Answer, events: Events, body: bytes, error: str, timed_out: bool
) -> tuple[Outcome, str]:
    if not answer.status:
        return "failed", f"no answer: {error}"
    if timed_out:
        return "failed", f"{error}, after {request.words} words"
    if not answer.complete:
        return "truncated", f"the answer has no end: {error}{' after [DONE]' * events.done}"
    if answer.surplus:
        return "truncated", f"{answer.surplus} bytes after the end of the answer"
    if answer.status in (429, 503) and "retry-after" in answer.headers:
        return "refused", f"{answer.status}, Retry-After {answer.headers['retry-after']}"
    if answer.status != 200:
        return "failed", f"{answer.status}: {body[:200].decode(errors='replace')}"
    if request.kind == "stream":
        if events.problem or not events.done:
            return "truncated", events.problem or "the stream ended without [DONE]"
    else:
        try:
            request.words = words_of(body)
        except ValueError as problem:
            return "truncated", str(problem)
    if request.words != request.asked:
        return "truncated", f"{request.words} words, and {request.asked} were asked for"
    return "ok", ""


def _retry_after(answer: Answer) -> float:
    seconds = answer.headers["retry-after"]
    return float(seconds) if seconds.isdecimal() else 1.0


def _context(load: Load) -> ssl.SSLContext | None:
    if not load.ca:
        return None
    context = ssl.create_default_context(cafile=load.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = bool(load.server_name)
    return context


def _request(load: Load, words: int, *, stream: bool) -> bytes:
    content = {"model": load.model, "messages": [{"role": "user", "content": "Count."}], "max_tokens": words}
    body = json.dumps({**content, **({"stream": True} if stream else {}), **load.extra}).encode()
    name = load.server_name or load.address
    host = name if load.port == (443 if load.ca else 80) else f"{name}:{load.port}"
    head = [f"POST {CHAT} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    if load.key:
        head.append(f"Authorization: Bearer {load.key}")
    if load.new_connections:
        head.append("Connection: close")
    return "\r\n".join([*head, "", ""]).encode() + body


def line_of(request: Request) -> str:
    """A request as a line of the record."""
    return json.dumps({name: getattr(request, name) for name in _FIELDS})


async def _run(load: Load, record: TextIO) -> None:
    def write(request: Request) -> None:
        record.write(f"{line_of(request)}\n")

    def report(state: State) -> None:
        values = {name: getattr(state, name) for name in State.__slots__}
        record.write(f"{json.dumps({'state': values})}\n")
        record.flush()

    generator = Generator(load, write, report)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def read() -> None:
        # The input has nothing but its end, which also comes when the process that started this one dies.
        if not os.read(0, 1):
            loop.remove_reader(0)
            stop.set()

    loop.add_reader(0, read)
    report(generator.state)
    await generator.run(stop)
    report(generator.state)


def main() -> None:
    """`python -m tests.load.generator RECORD`, with the load on the standard input."""
    # Byte by byte up to the end of the line, so that Python keeps nothing that is to be waited for.
    with open(0, "rb", buffering=0, closefd=False) as given:
        load = Load(**json.loads(given.readline()))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # A buffer of 256 KiB for each TLS connection would be 1.3 GB for 5,000; a TLS record has 16 KiB (RFC 8446, 5.1).
    if hasattr(sslproto.SSLProtocol, "max_size"):
        sslproto.SSLProtocol.max_size = 16384
    # The objects of thousands of connections live long: looking through them for garbage again and again costs more
    # than it finds.
    gc.set_threshold(100_000, 50, 100)
    with open(sys.argv[1], "w") as record:
        asyncio.run(_run(load, record))


if __name__ == "__main__":
    main()
