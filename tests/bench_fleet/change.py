"""What clients notice when all engines start anew: by `quench rollout`, by plain restarts, and by HAProxy's reload."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from quench.lab.progress import LabError
from quench.rollout_command import state_folder
from tests.bench_fleet.fleet import LAB, Fleet, wait_until_up
from tests.lab.support import CHECKOUT, MODEL, environment
from tests.load import Summary, running

# The stand-in engine says 50 words a second: streams of 60 s. They and the plain requests are sent all the time.
STREAMS, WORDS, PLAIN, PLAIN_RATE = 12, 3000, 16, 20.0
UNIT = f"vllm@{MODEL}.service"


def rollout(fleet: Fleet, inventory: str) -> tuple[Summary, float]:
    """What became of the requests while each engine is started anew by a rollout, and how many seconds that took."""
    # What an interrupted run has left would be gone on with.
    for old in state_folder().glob(f"{LAB}.*"):
        if old.is_file():
            old.unlink()
    started = _starts(fleet)
    command = [str(Path(sys.executable).with_name("quench")), "rollout", inventory, "--name", LAB,
               "--group-data", "inventories/group_data"]  # fmt: skip

    def change() -> None:
        done = subprocess.run(
            command, cwd=CHECKOUT, env=environment(fleet.nodes[0]), capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode != 0:
            raise LabError(f"quench rollout: {(done.stdout + done.stderr)[-3000:]}")

    found = _under_load(fleet, change)
    if not set(started).isdisjoint(_starts(fleet)):
        raise LabError("the rollout was to start all engines anew, and did not")
    return found


def restarts(fleet: Fleet) -> tuple[Summary, float]:
    """The same with `systemctl restart` of the engine, node by node, each when the one before it answers again."""

    def change() -> None:
        for node in fleet.nodes:
            node.root(f"systemctl restart {UNIT}")
            wait_until_up(fleet)

    return _under_load(fleet, change)


def reloads(fleet: Fleet, times: int = 3) -> Summary:
    """The same while HAProxy is reloaded, a second apart."""

    def change() -> None:
        for _ in range(times):
            fleet.holder().root("systemctl reload haproxy.service")
            time.sleep(1)

    return _under_load(fleet, change, words=200)[0]


def _under_load(fleet: Fleet, change: Callable[[], None], words: int = WORDS) -> tuple[Summary, float]:
    wait_until_up(fleet)
    load = fleet.load(streams=STREAMS, stream_words=words, plain=PLAIN, plain_rate=PLAIN_RATE, ramp=2)
    with running(load) as tally:
        tally.wait(lambda tally: tally.flowing >= STREAMS)
        began = time.monotonic()
        change()
        took = time.monotonic() - began
    return tally.summary(), took


def _starts(fleet: Fleet) -> list[tuple[str, str]]:
    show = f"systemctl show -p ActiveEnterTimestampMonotonic --value {UNIT}"
    return [(node.name, node.root(show)) for node in fleet.nodes]
