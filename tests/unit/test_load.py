"""The load generator against servers that misbehave on purpose: each case is counted as what it is."""

import asyncio
import contextlib
import http.server
import json
import re
import shutil
import socket
import ssl
import struct
import threading

import pytest

from tests.load import Load, LoadError, running
from tests.load.answer import Answer, Events, Malformed
from tests.load.generator import Generator, line_of
from tests.load.tally import Request, parse, percentile, summarise
from tests.load.wrk import _lua, throughput
from tests.load.wrk import parse as parse_wrk

DONE = b"data: [DONE]\n\n"


def event(text="word "):
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


def stream(words=3, end=DONE, last=b"0\r\n\r\n"):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(chunk(event()) for _ in range(words)) + (chunk(end) if end else b"") + last


def plain(words=1, more=b"", status=b"200 OK", cut=0):
    body = json.dumps({"choices": [{"message": {"content": "x"}}], "usage": {"completion_tokens": words}}).encode()
    head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n" % (status, len(body), more)
    return (head + body)[: -cut or None]


async def asked(reader):
    """Read one request. Gives its body, or None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, OSError):
        return None
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
    return await reader.readexactly(length)


def reset(writer):
    """End a connection with a TCP reset: no time to linger, socket(7)."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def answering(*answers, close=False):
    """A server that gives its answers in turn, the last one for ever. An answer is bytes, or an end of its own."""

    left = list(answers)

    async def serve(reader, writer):
        while await asked(reader) is not None:
            answer = left.pop(0) if len(left) > 1 else left[0]
            if callable(answer):
                await answer(writer)
            else:
                writer.write(answer)
                await writer.drain()
            if close or writer.is_closing():
                break
        writer.close()

    return serve


@contextlib.asynccontextmanager
async def serving(serve):
    """The port of a server of this test, which is gone with all its connections at the end."""
    tasks, writers = [], []

    async def kept(reader, writer):
        tasks.append(asyncio.current_task())
        writers.append(writer)
        with contextlib.suppress(OSError):
            await serve(reader, writer)

    server = await asyncio.start_server(kept, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.sleep(0)
        for task, writer in zip(tasks, writers, strict=True):
            task.cancel()
            writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


def send(serve, **load):
    """The requests of a load on a server of this test."""
    requests = []

    async def run():
        async with serving(serve) as port:
            values = {"limit": 1, "stream_words": 3, "timeout": 5.0, "pause": 0.0, "finish": 1.0} | load
            await Generator(Load("127.0.0.1", port, **values), requests.append).run(asyncio.Event())

    asyncio.run(run())
    return requests


def only(serve, **load):
    (request,) = send(serve, **load)
    return request


def test_a_whole_stream_is_ok_and_has_its_times():
    request = only(answering(stream()), streams=1)
    assert (request.outcome, request.status, request.words, request.error) == ("ok", 200, 3, "")
    assert request.start <= request.sent <= request.first_byte <= request.first_word <= request.last_byte <= request.end


def test_a_whole_plain_answer_is_ok():
    assert only(answering(plain()), plain=1).outcome == "ok"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (stream(last=b"")[: -len(chunk(DONE)) - 5], "no end"),
        (stream(end=b""), r"without \[DONE\]"),
        (stream(words=2), "2 words, and 3 were asked for"),
        (stream(words=4), "4 words, and 3 were asked for"),
        (stream(last=b""), r"no end: the server closed the connection after \[DONE\]"),
        (stream(end=DONE + event()), r"after \[DONE\]"),
        (stream(end=b'data: {"error": {"message": "out of memory"}}\n\n' + DONE), "out of memory"),
        (stream(end=b"data: {half\n\n" + DONE), "an event that is none"),
        (stream(last=b"zz\r\n"), "no size of a chunk"),
        (stream() + b"HTTP/1.1 400 Bad Request\r\n\r\n", "28 bytes after the end"),
    ],
)
def test_a_stream_that_is_not_whole_is_truncated(answer, error):
    request = only(answering(answer, close=True), streams=1)
    assert request.outcome == "truncated"
    assert re.search(error, request.error), request.error


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (plain(cut=3), "no end"),
        (plain(words=2), "2 words, and 1 were asked for"),
        (plain() + b"x", "1 bytes after the end"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "no completion"),
    ],
)
def test_a_plain_answer_of_a_wrong_length_is_truncated(answer, error):
    request = only(answering(answer, close=True), plain=1)
    assert (request.outcome, error in request.error) == ("truncated", True), request.error


def test_come_again_later_is_refused_and_the_connection_waits_as_long():
    later = [plain(more=b"Retry-After: 1\r\n", status=status) for status in (b"429 Too Many", b"503 Unavailable")]
    later[0] = later[0].replace(b"After: 1", b"After: 0")
    first, second, third = send(answering(*later, plain()), plain=1, limit=3)
    assert [(r.outcome, r.status) for r in (first, second, third)] == [("refused", 429), ("refused", 503), ("ok", 200)]
    assert (first.error, second.error) == ("429, Retry-After 0", "503, Retry-After 1")
    assert third.start - second.end >= 1


@pytest.mark.parametrize("status", [b"503 Service Unavailable", b"502 Bad Gateway", b"401 Unauthorized", b"302 Found"])
def test_another_status_is_failed_with_the_servers_own_words(status):
    request = only(answering(plain(status=status, more=b"X-Request-Id: abc\r\n")), plain=1)
    assert (request.outcome, request.status, request.request_id) == ("failed", int(status[:3]), "abc")
    assert "completion_tokens" in request.error
    assert "X-Request-Id abc" in str(request)


async def _resets(writer):
    reset(writer)


async def _resets_in_the_middle(writer):
    writer.write(stream()[:200])
    await writer.drain()
    await asyncio.sleep(0.05)
    reset(writer)


async def _hangs(writer):
    await asyncio.sleep(0.6)
    writer.close()


async def _hangs_in_the_middle(writer):
    writer.write(stream()[:-60])
    await _hangs(writer)


@pytest.mark.parametrize(
    ("end", "outcome", "error"),
    [
        (_resets, "failed", "no answer: Connection"),
        (_resets_in_the_middle, "truncated", "the answer has no end: Connection"),
        (_hangs, "failed", "no answer: no byte for 0.2 s"),
        (_hangs_in_the_middle, "failed", "no byte for 0.2 s, after 2 words"),
    ],
)
def test_a_reset_and_a_silence_are_told_apart(end, outcome, error):
    request = only(answering(end), streams=1, timeout=0.2)
    assert request.outcome == outcome
    assert error in request.error


def test_a_connection_that_is_closed_instead_of_an_answer_is_failed_and_not_tried_again():
    served = []

    async def serve(reader, writer):
        served.append(await asked(reader))
        writer.close()

    request = only(serve, plain=1)
    assert (request.outcome, len(served)) == ("failed", 1)
    assert "no answer" in request.error


def test_no_connection_is_failed():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    requests = []
    load = Load("127.0.0.1", port, plain=1, limit=1, pause=0)
    asyncio.run(Generator(load, requests.append).run(asyncio.Event()))
    assert requests[0].outcome == "failed"
    assert "no connection: ConnectionRefusedError" in requests[0].error


def test_chunks_may_be_cut_anywhere():
    whole = stream()

    async def bytewise(writer):
        for index in range(len(whole)):
            writer.write(whole[index : index + 1])
            await writer.drain()
            if index % 16 == 0:
                await asyncio.sleep(0)

    assert only(answering(bytewise), streams=1).outcome == "ok"
    for cut in range(len(whole)):
        answer, events = Answer(), Events()
        for part in (whole[:cut], whole[cut:]):
            events.feed(answer.feed(part))
        assert (answer.complete, answer.reusable, events.words, events.done) == (True, True, 3, True)


def test_an_event_may_go_over_several_chunks_and_a_chunk_may_hold_several():
    body = event() * 3 + DONE
    for size in (1, 7, 50, len(body)):
        text = stream(words=0, end=b"", last=b"")
        text += b"".join(chunk(body[i : i + size]) for i in range(0, len(body), size)) + b"0;x=y\r\nTrailer: z\r\n\r\n"
        assert only(answering(text), streams=1).outcome == "ok"


def test_a_connection_is_kept_and_one_that_was_closed_while_idle_is_opened_again_before_sending():
    async def closing_when_idle(reader, writer):
        while await asked(reader) is not None:
            writer.write(plain())
            if serving_closes:
                await asyncio.sleep(0.02)
                writer.close()
                break

    serving_closes = False
    kept = send(closing_when_idle, plain=1, limit=3)
    assert [(r.outcome, r.connection, r.before) for r in kept] == [("ok", 1, 0), ("ok", 1, 1), ("ok", 1, 2)]
    serving_closes = True
    opened = send(closing_when_idle, plain=1, limit=3, plain_rate=10)
    assert [(r.outcome, r.connection, r.before) for r in opened] == [("ok", 1, 0), ("ok", 2, 0), ("ok", 3, 0)]


def test_connection_close_is_respected():
    requests = send(answering(plain(more=b"Connection: close\r\n")), plain=1, limit=2)
    assert [(request.outcome, request.connection) for request in requests] == [("ok", 1), ("ok", 2)]


def test_a_connection_for_each_request_if_wanted():
    assert [request.connection for request in send(answering(plain()), plain=1, limit=3, new_connections=True)] == [
        1,
        2,
        3,
    ]


def test_with_a_rate_latency_counts_from_when_a_request_was_due():
    async def slow(writer):
        await asyncio.sleep(0.1)
        writer.write(plain())

    requests = send(answering(slow), plain=1, limit=3, plain_rate=50)
    starts = [request.start - requests[0].start for request in requests]
    assert starts == pytest.approx([0, 0.02, 0.04])
    assert requests[2].seconds > 0.25, "two others went before it on the only connection"


def test_what_is_on_its_way_at_the_end_may_finish_and_what_does_not_is_stopped():
    async def run(finish):
        requests, stop = [], asyncio.Event()

        async def slow(writer):
            writer.write(stream()[:-60])
            stop.set()
            await asyncio.sleep(0.2)
            writer.write(stream()[-60:])

        async with serving(answering(slow)) as port:
            load = Load("127.0.0.1", port, streams=1, stream_words=3, finish=finish)
            await Generator(load, requests.append).run(stop)
        return [request.outcome for request in requests]

    assert asyncio.run(run(5)) == ["ok"]
    assert asyncio.run(run(0.05)) == ["stopped"]


@pytest.mark.parametrize(
    "text",
    [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", b"x" * 70000],
)  # fmt: skip
def test_what_is_no_answer_is_malformed(text):
    with pytest.raises(Malformed):
        Answer().feed(text)


def test_answers_before_the_answer_and_answers_without_a_length_are_read():
    answer = Answer()
    assert answer.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\nA: b\r\nA: c\r\n\r\nhello") == b"hello"
    assert (answer.status, answer.headers, answer.complete) == (200, {"a": "b, c"}, False)
    answer.closed()
    assert (answer.complete, answer.reusable) == (True, False)


def test_the_summary_counts_each_kind_and_a_part_of_the_time():
    outcomes = ["ok", "ok", "refused", "failed", "truncated", "stopped"]
    requests = [
        Request(i, "plain" if i % 2 else "stream", 1, start=i, first_word=i + 1, end=i + 2 + i, outcome=outcome)
        for i, outcome in enumerate(outcomes)
    ]
    found = summarise(requests, connections=1, lateness_p99=0, lateness_max=0, cpu=0)
    assert (found.ok, found.refused, found.failed, found.truncated) == (2, 1, 1, 1)
    assert (found.plain.latency_p50, found.streams.latency_max, found.streams.first_word_p50) == (3, 2, 1)
    assert [request.number for request in found.bad] == [3, 4]
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["failed"] == 1
    assert "1 times, first: plain 3 failed" in found.text()
    assert parse(line_of(requests[3]).encode()) == requests[3]


def test_percentiles_are_values_that_were_measured():
    assert [percentile(range(1, 101), percent) for percent in (0, 50, 99, 100)] == [1, 50, 99, 100]


def test_a_process_of_its_own_sends_over_tls_and_checks_the_certificate(pki):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pki / "llm.example.org.crt", pki / "llm.example.org.key")
    ready, end = threading.Event(), None

    async def serve():
        nonlocal end, port
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        end = lambda: loop.call_soon_threadsafe(done.set)  # noqa: E731
        loop.set_exception_handler(lambda *_: None)
        server = await asyncio.start_server(answering(stream()), "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        ready.set()
        async with server:
            await done.wait()

    port = 0
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait()
    load = Load("127.0.0.1", port, str(pki / "ca.crt"), "llm.example.org", "sk-x", streams=2, stream_words=3)
    try:
        with running(load) as tally:
            tally.wait(lambda tally: tally.count()["ok"] > 20, 10)
        assert set(tally.count()) == {"ok"}, tally.summary().text()
        assert tally.summary().connections == 2
        other = Load("127.0.0.1", port, str(pki / "ca.crt"), "other.example.org", streams=1)
        with running(other) as tally:
            tally.wait(lambda tally: tally.count()["failed"] > 0, 10)
        assert "CERTIFICATE_VERIFY_FAILED" in tally.bad[0].error
        with pytest.raises(LoadError, match="ended with 1"), running(Load("127.0.0.1", port, "no.crt")) as tally:
            tally.wait(lambda tally: tally.open > 0, 10)
    finally:
        end()
        thread.join()


def test_the_answer_of_wrk_is_read():
    line = ('{"requests":1000,"microseconds":2000000,"p50":400,"p99":900,"max":1000,"bytes":5,"connect":0,"read":1,'
            '"write":0,"timeout":0,"status":2}')  # fmt: skip
    found = parse_wrk(line)
    assert (found.requests_per_second, found.latency_p99, found.clean) == (500, 0.0009, False)
    assert found.errors == {"connect": 0, "read": 1, "write": 0, "timeout": 0, "status": 2}
    assert _lua('a"\\\n') == '"a\\034\\092\\010"'


@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed here")
@pytest.mark.parametrize("keys", [(), ("sk-one", 'sk-"two"')])
def test_wrk_sends_each_key_in_turn(keys):
    seen = set()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.add(self.headers["Authorization"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/"
            found = throughput(url, {"X-More": "1"}, b"{}", connections=1, seconds=1, keys=keys, via=["env"])
        finally:
            server.shutdown()
            thread.join()
    assert found.clean
    assert seen == ({f"Bearer {key}" for key in keys} or {None})
