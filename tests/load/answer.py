"""HTTP/1.1 answers and event streams, read from bytes as they come, without a socket."""

from __future__ import annotations

import json
from collections.abc import Iterator

# No server of ours sends a head or a line of chunk size that is longer.
_LONGEST_HEAD = 65536
_LONGEST_LINE = 1024


class Malformed(Exception):
    """The bytes are no HTTP/1.1 answer, with what is wrong."""


class Answer:
    """One answer, from the bytes that are fed. RFC 9112, sections 6 and 7.

    Attributes:
        status: 0 until the head is there.
        headers: names in lower case.
        complete: whether the answer has come to its own end, by its length or its last chunk.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = False
        self._keeps = False
        self._buffer = bytearray()
        # One of: head, size, data, line (that ends a chunk), trailer, length, close, done.
        self._state = "head"
        self._left = 0

    @property
    def reusable(self) -> bool:
        """Whether another request may follow on the same connection."""
        return self.complete and self._keeps and not self._buffer

    @property
    def surplus(self) -> int:
        """Bytes after the end of the answer, which nobody asked for."""
        return len(self._buffer) if self.complete else 0

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came, and give what they have of the body.

        Raises:
            Malformed: nothing more can be read from this connection.
        """
        self._buffer += data
        return b"".join(self._parts())

    def closed(self) -> None:
        """The server has closed the connection: the end of an answer that has neither length nor chunks."""
        if self._state == "close":
            self._finish()

    def _finish(self) -> None:
        self._state = "done"
        self.complete = True

    def _parts(self) -> Iterator[bytes]:
        while self._state != "done":
            if self._state in ("data", "length", "close"):
                if not self._buffer:
                    return
                yield self._body()
            elif not self._line():
                return

    def _body(self) -> bytes:
        if self._state == "close":
            part = bytes(self._buffer)
            self._buffer.clear()
            return part
        part = bytes(self._buffer[: self._left])
        del self._buffer[: self._left]
        self._left -= len(part)
        if not self._left:
            if self._state == "data":
                self._state = "line"
            else:
                self._finish()
        return part

    def _line(self) -> bool:
        """Read the head or one line of the framing. False if it is not all there."""
        end, longest = (b"\r\n\r\n", _LONGEST_HEAD) if self._state == "head" else (b"\r\n", _LONGEST_LINE)
        position = self._buffer.find(end)
        if position < 0:
            if len(self._buffer) > longest:
                raise Malformed(f"no end of the {self._state} after {longest} bytes: {bytes(self._buffer[:60])!r}")
            return False
        line = bytes(self._buffer[:position])
        del self._buffer[: position + len(end)]
        if self._state == "head":
            self._head(line.decode("latin-1"))
        elif self._state == "size":
            digits = line.partition(b";")[0].strip()
            try:
                self._left = int(digits, 16)
            except ValueError:
                raise Malformed(f"no size of a chunk: {line[:60]!r}") from None
            self._state = "data" if self._left else "trailer"
        elif self._state == "line":
            if line:
                raise Malformed(f"a chunk is longer than its size: {line[:60]!r}")
            self._state = "size"
        elif not line:
            self._finish()
        return True

    def _head(self, text: str) -> None:
        first, *lines = text.split("\r\n")
        version, _, rest = first.partition(" ")
        status = rest[:3]
        if version not in ("HTTP/1.1", "HTTP/1.0") or not status.isdecimal():
            raise Malformed(f"no line of status: {first[:60]!r}")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                raise Malformed(f"no header: {line[:60]!r}")
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if status.startswith("1"):
            return  # 100 and 103 come before the answer.
        self.status, self.headers = int(status), headers
        options = {word.strip().lower() for word in headers.get("connection", "").split(",")}
        self._keeps = "keep-alive" in options if version == "HTTP/1.0" else "close" not in options
        chunked, length = headers.get("transfer-encoding", "").lower(), headers.get("content-length")
        if status in ("204", "304"):
            self._finish()
        elif chunked:
            if chunked != "chunked" or length is not None:
                raise Malformed(f"the length of the body is ambiguous: {chunked}, {length}")
            self._state = "size"
        elif length is None:
            self._state, self._keeps = "close", False
        elif not length.isdecimal():
            raise Malformed(f"no length: {length[:60]!r}")
        elif int(length):
            self._state, self._left = "length", int(length)
        else:
            self._finish()


class Events:
    """The events of a streamed completion, counted as the body comes.

    Attributes:
        words: events that brought text.
        done: whether `data: [DONE]` has come.
        problem: what was wrong with an event, in words; empty if nothing.
    """

    def __init__(self) -> None:
        self.words = 0
        self.done = False
        self.problem = ""
        self._rest = b""

    def feed(self, body: bytes) -> None:
        """Take a part of the body."""
        *lines, self._rest = (self._rest + body).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip())

    def _event(self, data: bytes) -> None:
        if self.done:
            self.problem = self.problem or f"an event after [DONE]: {data[:100]!r}"
        elif data == b"[DONE]":
            self.done = True
        else:
            try:
                event = json.loads(data)
                if "error" in event:
                    self.problem = self.problem or f"an event with an error: {data[:200]!r}"
                # The last event may bring the usage, and no choice.
                elif any(_text(choice) for choice in event["choices"]):
                    self.words += 1
            except (ValueError, KeyError, TypeError, AttributeError):
                self.problem = self.problem or f"an event that is none: {data[:100]!r}"


def words_of(body: bytes) -> int:
    """Number of tokens of an answer that is not streamed, by its own account.

    Raises:
        ValueError: the body is no completion.
    """
    try:
        answer = json.loads(body)
        if not all(isinstance(_text(choice), str) for choice in answer["choices"]):
            raise ValueError("a choice without text")
        return int(answer["usage"]["completion_tokens"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no completion ({error!r}): {body[:100]!r}") from None


def _text(choice: dict[str, dict[str, str]]) -> str | dict[str, str] | None:
    """The text of a choice: streamed chat, chat, or plain completion."""
    part = choice.get("delta") or choice.get("message")
    return part.get("content") if part else choice.get("text")
