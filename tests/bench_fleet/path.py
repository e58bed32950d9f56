"""What the way through the fleet costs: requests a second, time to the first word, and streams at the same time.

The engine is the fast one, which costs next to nothing. Its own figures are taken on its host's loopback, by programs
of this machine in that host's network. The way begins on this machine: TLS 1.3 and the key check at HAProxy, mutual TLS
to nginx on the node, the engine. Everything shares the cores of this machine: load, balancers, nodes and engines.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from quench.lab import fast_engine
from tests.bench_fleet import router
from tests.bench_fleet.fleet import CONCURRENT, KEYS, Fleet, inside, wait_until_up
from tests.lab.support import MODEL
from tests.load import Load, Summary, Throughput, running, throughput

PORT, SECONDS_A_WORD = 8000, 2.0
CONNECTIONS, SECONDS, ROUNDS = 16, 4, 3
# New streams a second while the time to the first word is measured, and for how many seconds.
LOW_RATE, LOW_SECONDS = 20.0, 10.0
# All are there at once for the last 10 s and more: the first ones last 50 s.
STREAMS, WORDS, RAMP = 5000, 25, 40.0
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Rates:
    """What wrk found, round by round; the processor time of each program is in microseconds a request of the path."""

    engine: list[Throughput] = field(default_factory=list)
    path: list[Throughput] = field(default_factory=list)
    router: list[Throughput] = field(default_factory=list)
    costs: list[dict[str, float]] = field(default_factory=list)


def start_engines(fleet: Fleet) -> None:
    """The fast engine in the place of the stand-in, on each node."""
    for node in fleet.nodes:
        fast_engine.start(node.lab, node.name, MODEL, port=PORT, seconds_a_word=SECONDS_A_WORD)
    wait_until_up(fleet)


def rates(fleet: Fleet, program: Path | None) -> Rates:
    """Requests a second of a node's engine, of the way through the fleet, and of the Python router, in turns."""
    found, node = Rates(), fleet.nodes[0]
    headers = {"Content-Type": "application/json"}
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Count."}], "max_tokens": 1}).encode()
    via, chat = inside(node), "/v1/chat/completions"

    def direct(url: str, *keys: str) -> Throughput:
        return throughput(url + chat, headers, body, connections=CONNECTIONS, seconds=SECONDS, keys=keys, via=via)

    for _ in range(ROUNDS):
        found.engine.append(direct(f"http://127.0.0.1:{PORT}"))
        before = _processor_time(fleet)
        found.path.append(
            throughput(
                f"https://{fleet.address}{chat}", {**headers, "Host": fleet.name}, body,
                connections=CONNECTIONS, seconds=SECONDS, keys=KEYS,
            )
        )  # fmt: skip
        after, requests = _processor_time(fleet), found.path[-1].requests
        found.costs.append({name: (after[name] - before[name]) * 1e6 / requests for name in after})
    # Not in the same rounds: while it is there, it takes from the others' time, even with nothing to do.
    if program:
        with router.running(program, node) as url:
            direct(url, router.KEY)
            found.router += [direct(url, router.KEY) for _ in range(ROUNDS)]
    return found


def _processor_time(fleet: Fleet) -> dict[str, float]:
    """Seconds of processor time that HAProxy, nginx and the engines of the fleet have taken so far."""
    hosts = {Path(inside(host)[1].removeprefix("--net=")).readlink() for host in (*fleet.balancers, *fleet.nodes)}
    found: dict[str, float] = defaultdict(float)
    for process in Path("/proc").iterdir():
        try:
            if not process.name.isdigit() or (process / "ns" / "net").readlink() not in hosts:
                continue
            name, _, rest = (process / "stat").read_text().partition("(")[2].rpartition(")")
            unit = (process / "cgroup").read_text()
        except OSError:  # it has ended
            continue
        who = "engine" if "/vllm@" in unit or "vllm.slice" in unit else name
        if who in ("engine", "haproxy", "nginx"):
            found[who] += sum(int(ticks) for ticks in rest.split()[11:13]) / _TICK
    return found


def first_words(fleet: Fleet) -> tuple[Summary, Summary]:
    """Streams of one word at a low rate: of the engine alone, and of the way through the fleet."""
    # Enough connections that none is waited for.
    few = {"streams": 60, "stream_words": 1, "stream_rate": LOW_RATE}
    direct = Load("127.0.0.1", PORT, **few)  # type: ignore[arg-type]
    return _low(direct, inside(fleet.nodes[0])), _low(fleet.load(**few), [])


def _low(load: Load, via: list[str]) -> Summary:
    with running(load, via=via) as tally:
        # By then each connection is open: handshakes are no part of this figure.
        time.sleep(load.streams / LOW_RATE + 1)
        since = time.monotonic()
        time.sleep(LOW_SECONDS)
    return tally.summary(since)


def streams(fleet: Fleet, address: str) -> tuple[int, Summary]:
    """So many streams at the same time, to their end. Gives how many there were at once."""
    assert len(fleet.nodes) * CONCURRENT >= STREAMS
    load = fleet.load(address=address, streams=STREAMS, stream_words=WORDS, ramp=RAMP, limit=STREAMS, timeout=60)
    most = 0
    with running(load) as tally:
        end = time.monotonic() + RAMP + WORDS * SECONDS_A_WORD + 60
        while time.monotonic() < end and sum(tally.count().values()) < STREAMS:
            most = max(most, tally.flowing)
            time.sleep(0.2)
    return most, tally.summary()


def median(found: list[Throughput], name: str) -> float:
    """Of all rounds."""
    return statistics.median(getattr(one, name) for one in found)
