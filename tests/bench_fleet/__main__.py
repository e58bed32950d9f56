"""What clients notice of a rollout and of a lost balancer, and what the way through a fleet costs, in one run.

Two balancers and three nodes in the lab: HAProxy, keepalived, nginx, TLS, firewall and every packet are real, the
engine is simulated, and all of it shares this machine. The last line is one JSON object. The exit code is 1 if a
rollout lost or refused a request, if a reload lost one, if the shared address was silent for too long, or if a stream
had an error. Other aims that are missed are named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quench.lab import fleet as lab_fleet
from quench.lab.progress import LabError, say, step
from tests.bench_fleet import change, path, router
from tests.bench_fleet.failover import failover
from tests.bench_fleet.fleet import LAB, Fleet, alone, inventory, up, wait_until_up
from tests.lab.support import CHECKOUT
from tests.load import LoadError

SIMULATED = [
    "engine: a stand-in in Python for the rollout, nginx with a script for the rest; no model, no GPU",
    "hosts: containers with systemd on this machine, which share its cores with the load",
]


@dataclass(frozen=True)
class Aim:
    """A figure, and what it must be. `hard`: to miss it is an error."""

    name: str
    value: float | None
    limit: float
    at_most: bool = True
    hard: bool = False

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        value = "not measured" if self.value is None else f"{self.value:g}"
        return f"{self.name:30} {value:>12}   aim {sign} {self.limit:<8g} {'met' if self.met else 'MISSED'}"


class Loads:
    """How busy the machine was at each part, before it: others may work there as well."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    @contextmanager
    def part(self, name: str, text: str) -> Iterator[None]:
        self.found[name] = round(os.getloadavg()[0], 2)
        with step(text):
            yield


def measure(folder: Path) -> int:
    """Runs everything and prints the figures; 1 if a hard limit is missed."""
    began, loads = time.monotonic(), Loads()
    why_no_router, program = "", None
    try:
        program = router.prepare()
    except LabError as error:
        why_no_router = str(error)
        say(f"no Python router to compare with: {error}")
    fleet = up(folder)
    found: dict[str, Any] = {}
    with loads.part("rollout", "quench rollout of 3 nodes under load"):
        # A real change: the engine has to start anew to take it.
        summary, took = change.rollout(fleet, inventory(folder / "second", max_model_len=2048))
    requests = summary.ok + summary.refused + summary.failed + summary.truncated
    found |= {"rollout_requests": requests, "rollout_failed": summary.failed, "rollout_truncated": summary.truncated}
    found |= {"rollout_refused": summary.refused, "rollout_s": round(took, 1)}
    tell(summary)
    with loads.part("restart", "systemctl restart of 3 engines under load"):
        summary, took = change.restarts(fleet)
    found |= {"restart_requests": summary.ok + summary.refused + summary.failed + summary.truncated}
    found |= {"restart_failed": summary.failed + summary.truncated, "restart_s": round(took, 1)}
    with loads.part("reload", "3 reloads of HAProxy under load"):
        summary = change.reloads(fleet)
    found |= {"reload_requests": summary.ok + summary.refused + summary.failed + summary.truncated}
    found["reload_lost"] = summary.failed + summary.truncated
    tell(summary)
    with loads.part("failover", "switching a balancer off"):
        found["failover_s"] = round(failover(fleet), 2)
    path.start_engines(fleet)
    # Like with like: the way to one engine beside that engine. The others would take their share of the same cores.
    with alone(fleet, fleet.nodes[0]):
        with loads.part("rates", "requests a second: engine, path to it, router in Python"):
            rates = path.rates(fleet, program)
        found |= rates_of(rates, why_no_router)
        with loads.part("first_words", "time to the first word at a low rate"):
            direct, through = path.first_words(fleet)
    found |= first_words_of(direct, through)
    tell(direct, through)
    with loads.part("streams", f"{path.STREAMS} streams at the same time"):
        # A node that is back gets its whole share after haproxy_slow_start_seconds.
        time.sleep(30)
        wait_until_up(fleet)
        # By the balancer's own address, so that it can be told apart whether the streams break or the address moves.
        moves, holder = fleet.moves(), fleet.holder()
        most, summary = path.streams(fleet, holder.address)
        moves = fleet.moves() - moves
    lost = summary.failed + summary.truncated + summary.refused
    found |= {"streams_held": min(most, summary.streams.ok), "stream_errors": lost}
    found |= {"streams_address_moves": moves, "streams_seconds_a_word": path.SECONDS_A_WORD}
    found |= {"streams_gap_p99_s": round(summary.streams.gap_p99, 2), "load_generator_cores": round(summary.cpu, 2)}
    tell(summary)
    return report(fleet, found, loads.found, time.monotonic() - began)


def rates_of(rates: path.Rates, why_no_router: str) -> dict[str, Any]:
    """Medians of all rounds, and what was no good answer."""
    engine, through = (path.median(rounds, "requests_per_second") for rounds in (rates.engine, rates.path))
    python = path.median(rates.router, "requests_per_second") if rates.router else None
    names = sorted({name for cost in rates.costs for name in cost})
    return {
        "engine_requests_per_s": round(engine),
        "requests_per_s": round(through),
        "requests_per_s_python_router": None if python is None else round(python, 1),
        **({"why_no_python_router": why_no_router} if why_no_router else {}),
        "share_of_engine": round(through / engine, 3),
        "times_python_router": None if python is None else round(through / python, 1),
        "engine_rounds": [round(one.requests_per_second) for one in rates.engine],
        "path_rounds": [round(one.requests_per_second) for one in rates.path],
        "python_router_rounds": [round(one.requests_per_second, 1) for one in rates.router],
        **{
            f"{who}_latency_ms_{point}": round(path.median(rounds, f"latency_{point}") * 1000, 2)
            for who, rounds in (("engine", rates.engine), ("path", rates.path), ("python_router", rates.router))
            for point in ("p50", "p99")
            if rounds
        },
        "path_errors": sum(sum(one.errors.values()) for one in rates.path),
        "python_router_errors": sum(sum(one.errors.values()) for one in rates.router),
        "processor_us_per_request": {
            name: round(sorted(cost.get(name, 0.0) for cost in rates.costs)[len(rates.costs) // 2], 1) for name in names
        },
    }


def first_words_of(direct: Any, through: Any) -> dict[str, Any]:
    """Milliseconds from when a stream was due to its first word, and what the way adds."""
    found: dict[str, Any] = {}
    for point in ("p50", "p99"):
        one, other = (getattr(summary.streams, f"first_word_{point}") * 1000 for summary in (direct, through))
        found |= {f"ttft_engine_ms_{point}": round(one, 2), f"ttft_path_ms_{point}": round(other, 2)}
        found[f"ttft_added_ms_{point}"] = round(other - one, 2)
    return found


def tell(*summaries: Any) -> None:
    """What was wrong with single requests, if anything was."""
    for request in [request for summary in summaries for request in summary.bad][:5]:
        say(str(request))


def aims_of(found: dict[str, Any]) -> list[Aim]:
    """What the figures must be."""
    return [
        Aim("rollout_failed", found["rollout_failed"], 0, hard=True),
        Aim("rollout_truncated", found["rollout_truncated"], 0, hard=True),
        Aim("rollout_refused", found["rollout_refused"], 0, hard=True),
        Aim("reload_lost", found["reload_lost"], 0, hard=True),
        Aim("failover_s", found["failover_s"], 3.0, hard=True),
        Aim("ttft_added_ms_p50", found["ttft_added_ms_p50"], 1.0),
        Aim("streams_held", found["streams_held"], path.STREAMS, at_most=False),
        Aim("stream_errors", found["stream_errors"], 0, hard=True),
        Aim("streams_address_moves", found["streams_address_moves"], 0),
        Aim("share_of_engine", found["share_of_engine"], round(1 / 3, 3), at_most=False),
        Aim("times_python_router", found["times_python_router"], 50, at_most=False),
    ]


def report(fleet: Fleet, found: dict[str, Any], loads: dict[str, float], seconds: float) -> int:
    """The table, what was missed, and the JSON line; 1 if it was a hard limit."""
    aims = aims_of(found)
    balancer, node = fleet.balancers[0], fleet.nodes[0]
    about = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, kernel {platform.release()}",
        "load_of_the_machine": loads,
        "versions": {
            "haproxy": balancer.root("haproxy -v | head -n 1 | cut -d' ' -f3"),
            "nginx": node.root("nginx -v 2>&1").rpartition("/")[2],
            "openssl": balancer.root("openssl version").split()[1],
            "python": platform.python_version(),
            "litellm": router.version(),
        },
        "simulated": SIMULATED,
    }
    for name, value in found.items():
        print(f"{name:32} {json.dumps(value)}")
    print()
    for aim in aims:
        print(aim)
    say("Requests a second and first words: one engine and the way to it, while the other nodes are in maintenance.")
    say(f"{about['machine']}; load of the machine before each part: {loads}; {seconds:.0f} s in all")
    say(f"Simulated: {'; '.join(SIMULATED)}.")
    missed = [aim.name for aim in aims if not aim.met]
    print(json.dumps({**found, "missed": missed, "seconds": round(seconds), **about}))
    return 1 if any(aim.hard and not aim.met for aim in aims) else 0


def main() -> int:
    argparse.ArgumentParser(
        prog="python -m tests.bench_fleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    os.environ["QUENCH_LAB"] = LAB
    os.chdir(CHECKOUT)
    try:
        with tempfile.TemporaryDirectory(prefix="quench-bench-fleet-") as folder:
            return measure(Path(folder))
    finally:
        if not os.environ.get("QUENCH_KEEP_LABS"):
            lab_fleet.down(LAB, missing_ok=True)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except (AssertionError, LabError, LoadError, RuntimeError) as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
