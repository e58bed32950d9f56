"""`python -m tests.load`: a load from the command line."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

from tests.load import Load, running, throughput

_TEXT = """\
Sends requests to a server that speaks OpenAI's interface, and counts each one to its end:
  ok         the whole answer, with as many words as were asked for
  refused    429 or 503 with Retry-After: the server said to come again later
  failed     another status, no connection, no answer, or no byte for --timeout seconds
  truncated  an answer that began and is not whole: no [DONE], too few or too many words, a wrong length
The exit code is 1 if one failed or was truncated.

A key is read from a file or from $LOAD_KEY, since a command line can be read by all users of a machine.

examples:
  # 5,000 streams of 60 words through a fleet, opened over 20 s, watched for a minute
  python -m tests.load https://192.0.2.10 --ca ca.crt --server-name llm.example.org --key-file api.key \\
      --streams 5000 --words 60 --ramp 20 --seconds 60
  # 50 requests a second beside 200 streams: latency counts from when each request was due
  python -m tests.load https://192.0.2.10 --ca ca.crt --key-file api.key --plain 20 --plain-rate 50 --streams 200
  # the engine itself, without TLS; 16 connections as fast as they can, by wrk
  python -m tests.load http://127.0.0.1:8000 --throughput 16 --seconds 5
"""


def main() -> int:
    """Returns 1 if a request failed or was truncated."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.load", description=_TEXT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="https://ADDRESS[:PORT], or http://… without TLS")
    parser.add_argument("--ca", default="", help="file with the CA's certificate, for https")
    parser.add_argument("--server-name", default="", help="name in the certificate; without it none is compared")
    parser.add_argument("--key-file", type=Path, help="file with the API key; else $LOAD_KEY, else none is sent")
    parser.add_argument("--model", default="tiny-llama", help="default: %(default)s")
    parser.add_argument("--plain", type=int, default=0, help="connections with plain requests")
    parser.add_argument("--plain-words", type=int, default=1, help="words of a plain answer; default: %(default)s")
    parser.add_argument("--plain-rate", type=float, default=0, help="plain requests a second; default: as they can")
    parser.add_argument("--streams", type=int, default=0, help="connections with streams")
    parser.add_argument("--words", type=int, default=60, help="words of a stream; default: %(default)s")
    parser.add_argument("--stream-rate", type=float, default=0, help="new streams a second; default: as they can")
    parser.add_argument("--new-connections", action="store_true", help="a connection for each request")
    parser.add_argument("--seconds", type=float, default=10, help="time of sending; default: %(default)s")
    parser.add_argument("--ramp", type=float, default=0, help="seconds over which connections are opened; default: 0")
    parser.add_argument("--timeout", type=float, default=30, help="seconds without a byte; default: %(default)s")
    parser.add_argument("--finish", type=float, default=120, help="seconds for the last answers; default: %(default)s")
    parser.add_argument("--throughput", type=int, default=0, metavar="CONNECTIONS", help="measure requests/s with wrk")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    given = parser.parse_args()
    url = urlsplit(given.url)
    key = given.key_file.read_text().strip() if given.key_file else os.environ.get("LOAD_KEY", "")
    if url.scheme not in ("http", "https") or not url.hostname or url.path not in ("", "/"):
        parser.error(f"{given.url} is no https://ADDRESS[:PORT]")
    if given.throughput:
        return _throughput(given, key)
    if url.scheme == "https" and not given.ca:
        parser.error("https needs --ca: a certificate that nobody checks proves nothing")
    if not given.plain and not given.streams:
        parser.error("nothing to send: give --plain, --streams or --throughput, each with a number of connections")
    load = Load(
        url.hostname,
        url.port or (443 if url.scheme == "https" else 80),
        ca=given.ca if url.scheme == "https" else "",
        server_name=given.server_name,
        key=key,
        model=given.model,
        plain=given.plain,
        plain_words=given.plain_words,
        plain_rate=given.plain_rate,
        streams=given.streams,
        stream_words=given.words,
        stream_rate=given.stream_rate,
        new_connections=given.new_connections,
        ramp=given.ramp,
        timeout=given.timeout,
        finish=given.finish,
    )
    with running(load) as tally:
        end = time.monotonic() + given.seconds
        while time.monotonic() < end:
            time.sleep(min(1.0, max(0.0, end - time.monotonic())))
            print(f"{tally.open} open, {tally.flowing} flowing, {dict(tally.count())}", file=sys.stderr)
    summary = tally.summary()
    print(summary.text())
    if given.json:
        print(json.dumps(summary.as_dict()))
    return 1 if summary.bad else 0


def _throughput(given: argparse.Namespace, key: str) -> int:
    body = {"model": given.model, "messages": [{"role": "user", "content": "Count."}], "max_tokens": given.plain_words}
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    if given.server_name:
        headers["Host"] = given.server_name
    found = throughput(
        f"{given.url.rstrip('/')}/v1/chat/completions", headers, json.dumps(body).encode(),
        connections=given.throughput, seconds=given.seconds,
    )  # fmt: skip
    print(
        f"{found.requests_per_second:.0f} requests/s, p50 {found.latency_p50 * 1000:.2f} ms, "
        f"p99 {found.latency_p99 * 1000:.2f} ms; errors: {found.errors}"
    )
    if given.json:
        print(json.dumps(asdict(found)))
    return 0 if found.clean else 1


if __name__ == "__main__":
    raise SystemExit(main())
