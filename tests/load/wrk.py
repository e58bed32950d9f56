"""Requests a second, by wrk: as many as the server takes, on connections that are kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# wrk's SCRIPTING file explains `done`; its times are microseconds.
_SCRIPT = """\
wrk.method = {method}
wrk.body = {body}
{headers}
local keys, made, last = {keys}, {{}}, 0
-- Made once: a request that is put together anew each time would be slower than some servers.
function init(arguments)
    for number, key in ipairs(keys) do
        wrk.headers["Authorization"] = "Bearer " .. key
        made[number] = wrk.format()
    end
    if #keys == 0 then
        made[1] = wrk.format()
    end
end
function request()
    last = last % #made + 1
    return made[last]
end
function done(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        '\\nRESULT {{"requests":%d,"microseconds":%d,"p50":%d,"p99":%d,"max":%d,"bytes":%d,'
        .. '"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}}\\n',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max, summary.bytes,
        errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
"""


@dataclass(frozen=True)
class Throughput:
    """What wrk measured. Times are in seconds.

    Attributes:
        requests: answers that came, of any status.
        errors: answers with a status from 400 on, and connections that failed, by wrk's own kinds.
    """

    requests: int
    seconds: float
    requests_per_second: float
    latency_p50: float
    latency_p99: float
    latency_max: float
    bytes_per_second: float
    errors: dict[str, int]

    @property
    def clean(self) -> bool:
        """Whether there were answers, and each was as it should be."""
        return self.requests > 0 and not any(self.errors.values())


def throughput(
    url: str,
    headers: Mapping[str, str],
    body: bytes | None,
    *,
    connections: int = 16,
    seconds: float = 5,
    keys: Sequence[str] = (),
    via: Sequence[str] = (),
) -> Throughput:
    """Requests a second that a server takes, each connection with its next request when the last one is answered.

    Args:
        url: with an address or a name that resolves. The certificate is not checked, which wrk cannot.
        headers: such as Authorization and Host. They go by a file that only this user reads, not by the command line.
        body: None sends GET, anything else POST.
        connections: at the same time.
        seconds: whole ones; wrk knows no others.
        keys: API keys that take turns, since each has a limit of its own.
        via: words before the command, such as those that run it in the network of another host.

    Raises:
        RuntimeError: wrk is missing, or failed.
    """
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is missing; install it: apt-get install wrk")
    script = _SCRIPT.format(
        method=_lua("GET" if body is None else "POST"),
        body="nil" if body is None else _lua(body.decode()),
        headers="\n".join(f"wrk.headers[{_lua(name)}] = {_lua(value)}" for name, value in headers.items()),
        keys="{" + ", ".join(_lua(key) for key in keys) + "}",
    )
    with tempfile.TemporaryDirectory(prefix="quench-wrk-") as folder:
        path = Path(folder) / "request.lua"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(script)
        done = subprocess.run(
            [*via, "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(path), url],
            capture_output=True, text=True, check=False, timeout=seconds + 60,
        )  # fmt: skip
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"wrk failed: {(done.stderr + done.stdout).strip()[-500:]}")
    return parse(lines[0])


def parse(line: str) -> Throughput:
    """The line of JSON that the script has wrk print."""
    found = json.loads(line)
    took = found["microseconds"] / 1e6
    return Throughput(
        requests=found["requests"],
        seconds=took,
        requests_per_second=found["requests"] / took,
        latency_p50=found["p50"] / 1e6,
        latency_p99=found["p99"] / 1e6,
        latency_max=found["max"] / 1e6,
        bytes_per_second=found["bytes"] / took,
        errors={name: found[name] for name in ("connect", "read", "write", "timeout", "status")},
    )


def _lua(text: str) -> str:
    """A Lua string: each byte that is not plain as a number."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03d}" for b in text.encode()) + '"'
