"""Commands per host and seconds of a run with nothing to change, beside plain pyinfra in the same run.

Three ways to the same state of the same host, in turn, several rounds:
  quench        deploys/inference.py as it is
  connector     deploys/inference.py over pyinfra's SSH connector as it is, without TCP_NODELAY
  plain         the same files, packages, users and services with pyinfra's own operations and connector
The last line is one JSON object for machines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from quench.files import ManagedFile
from quench.lab import fleet
from quench.lab.progress import LabError, say
from quench.plan import load_inventory, make_plan
from quench.render import write_tree

CHECKOUT = Path(__file__).resolve().parents[2]
LAB, ROUNDS = "bench", 7
# A run with nothing to change: at most so many remote commands, and so many times faster than plain pyinfra.
MOST_COMMANDS, LEAST_RATIO = 30, 4.0
INFERENCE, PLAIN = "deploys/inference.py", "tests/bench/plain.py"


def state_of(tree: Path) -> dict[str, object]:
    """What the plain deploy has to keep, read from the plan of the real one."""
    from roles.base.deploy import PACKAGES as base_packages
    from roles.hardening.files import PACKAGES as hardening_packages
    from roles.nginx.files import PACKAGES as nginx_packages
    from roles.vllm.deploy import PACKAGES as vllm_packages

    plan = make_plan(load_inventory("inventories/lab.py"), [INFERENCE])["node1"]
    write_tree({"node1": plan}, tree)
    model = next(iter(next(item for item in plan.settings if item.prefix == "vllm").models.items()))  # type: ignore[attr-defined]
    for file in plan.files:
        # The comparison is about speed: the plain deploy must find the host as it is, secrets included.
        (tree / "node1" / file.dest.lstrip("/")).write_bytes(ManagedFile.revealed(file))
    return {
        "packages": [
            *base_packages,
            *vllm_packages,
            *nginx_packages,
            *hardening_packages,
            "logrotate",
            "firewalld",
            "nftables",
            "netbase",
        ],
        "users": [["vllm", "/var/lib/vllm", "/usr/sbin/nologin"], ["ops", "/home/ops", "/bin/bash"]],
        "folders": [
            {"path": item.dest, "user": item.owner, "group": item.group, "mode": f"{item.mode:o}"}
            for item in plan.directories
        ],
        "files": [
            {"dest": item.dest, "user": item.owner, "group": item.group, "mode": f"{item.mode:o}"}
            for item in plan.files
        ],
        "verified": [[f"/srv/models/{model[0]}/{model[1].revision}/SHA256SUMS", model[1].sha256]],
        # Without chrony and auditd, which a container keeps from running: plain pyinfra would start them in each run.
        # And without what has no counterpart there: files of the distribution changed in place, proofs of the way in.
        "units": [f"vllm@{model[0]}", "nginx", "logrotate.timer", "ssh", "quench-forward", "firewalld"],
    }


def run(deploy: str, *options: str, count: bool = False) -> tuple[float, int, dict[str, int]]:
    """Seconds, remote commands (if they are counted) and totals of one run of pyinfra."""
    with tempfile.TemporaryDirectory() as folder:
        counter = Path(folder) / "count"
        program = [sys.executable, "tests/bench/count.py"] if count else ["pyinfra"]
        start = time.monotonic()
        done = subprocess.run(
            [*program, "inventories/lab.py", deploy, "-y", "--json", *options], cwd=CHECKOUT, text=True, check=False,
            env={**os.environ, "QUENCH_BENCH_COUNT": str(counter), "PYTHONPATH": str(CHECKOUT)},
            capture_output=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        seconds = time.monotonic() - start
        if done.returncode != 0:
            raise LabError(f"{deploy}: {done.stderr[-3000:]}")
        return seconds, int(counter.read_text()) if count else 0, json.loads(done.stdout)["results"]["totals"]


def main() -> int:
    """Prints a table, the machine and versions, and the JSON line; 1 if a run costs more than it may."""
    argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    os.environ["QUENCH_LAB"] = LAB
    sys.path.insert(0, str(CHECKOUT))
    os.chdir(CHECKOUT)
    fleet.up(LAB, nodes=1, system="debian-12", engine="stand-in")
    try:
        run(INFERENCE)
        with tempfile.TemporaryDirectory() as folder:
            os.environ["QUENCH_BENCH_TREE"] = folder
            os.environ["QUENCH_BENCH_STATE"] = json.dumps(state_of(Path(folder)))
            # pyinfra's own tuning key, emptied: the connector as it comes.
            stock = ("--data", "ssh_paramiko_connect_kwargs={}")
            ways = {"quench": (INFERENCE,), "connector": (INFERENCE, *stock), "plain": (PLAIN, *stock)}
            commands, seconds = {}, {way: [] for way in ways}
            for way, words in ways.items():
                _, commands[way], totals = run(*words, count=True)
                if totals["success"] or not totals["hosts"]:
                    raise LabError(f"{way}: the run was to change nothing, and changed {totals['success']}")
            for _ in range(ROUNDS):
                for way, words in ways.items():
                    seconds[way].append(run(*words)[0])
    finally:
        fleet.down(LAB)
    median = {way: statistics.median(values) for way, values in seconds.items()}
    ratios = {
        way: statistics.median(a / b for a, b in zip(seconds[way], seconds["quench"], strict=True)) for way in ways
    }
    print(f"{'':10} {'commands':>9} {'seconds':>8} {'min':>6} {'max':>6} {'ratio':>6}")
    for way in ways:
        low, high = min(seconds[way]), max(seconds[way])
        print(f"{way:10} {commands[way]:9} {median[way]:8.2f} {low:6.2f} {high:6.2f} {ratios[way]:6.2f}")
    say(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"pyinfra {version('pyinfra')}, paramiko {version('paramiko')}; {ROUNDS} rounds, whole processes")  # fmt: skip
    print(
        json.dumps(
            {
                "commands_per_host": commands["quench"],
                "seconds": round(median["quench"], 3),
                "seconds_plain_pyinfra": round(median["plain"], 3),
                "ratio": round(ratios["plain"], 2),
                "commands_per_host_plain_pyinfra": commands["plain"],
                "seconds_same_deploy_stock_connector": round(median["connector"], 3),
                "ratio_same_deploy_stock_connector": round(ratios["connector"], 2),
                "rounds": ROUNDS,
            }
        )
    )
    return 0 if commands["quench"] <= MOST_COMMANDS and ratios["plain"] >= LEAST_RATIO else 1


if __name__ == "__main__":
    raise SystemExit(main())
