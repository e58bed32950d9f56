"""`make demo`: a lab host becomes an inference node that answers. The last line is one JSON object for machines."""

from __future__ import annotations

import argparse
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai

from quench.lab import fleet
from quench.lab.models import NAME as MODEL
from quench.lab.progress import LabError, say
from quench.lab.state import Lab

CHECKOUT = Path(__file__).resolve().parent.parent
LAB = "demo"
SIMULATED = ["GPU: there is none, vLLM runs on the CPU", "model: a two-layer Llama with random weights"]

_seconds: dict[str, float] = {}


@contextmanager
def stage(name: str) -> Iterator[None]:
    """A part of the demo, announced, with the time it took."""
    print(f"--> {name}", file=sys.stderr, flush=True)
    start = time.monotonic()
    yield
    _seconds[name] = round(time.monotonic() - start, 1)


def pyinfra(*options: str) -> subprocess.CompletedProcess[str]:
    """The operator's own command line, shown and run."""
    words = ["pyinfra", "inventories/lab.py", "deploys/inference.py", "-y", *options]
    say(f"$ QUENCH_LAB={LAB} {' '.join(words)}")
    return subprocess.run(
        words, cwd=CHECKOUT, env={**os.environ, "QUENCH_LAB": LAB}, text=True, check=False,
        stdout=subprocess.PIPE if "--json" in options else sys.stderr,
        stderr=subprocess.PIPE if "--json" in options else sys.stderr, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def ask(lab: Lab) -> str:
    """One chat completion, streamed over TLS with the API key, with OpenAI's own client."""
    host, key = lab.hosts[0], (lab.folder / "api.key").read_text().strip()
    http = openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile=str(lab.folder / "ca" / "ca.crt")))
    answer = ""
    with openai.OpenAI(base_url=f"https://{host.address}/v1", api_key=key, http_client=http) as client:
        stream = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "What is quenching?"}], max_tokens=40, stream=True
        )
        for chunk in stream:
            text = (chunk.choices[0].delta.content or "") if chunk.choices else ""
            answer += text
            # Random weights give any byte; a terminal gets only what can be printed.
            print("".join(char if char.isprintable() else "." for char in text), end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return answer


def main() -> int:
    """Runs the stages; 0 if the node answered and the second run changed nothing."""
    argparse.ArgumentParser(
        prog="python -m tests.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with stage("lab"):
        lab = fleet.up(LAB, nodes=1, system="debian-12", engine="vllm-cpu")
    with stage("first_run"):
        if pyinfra().returncode != 0:
            raise LabError("the run failed; what it said stands above")
    with stage("stream"):
        answer = ask(lab)
    with stage("second_run"):
        second = pyinfra("--json")
        if second.returncode != 0:
            raise LabError(f"the second run failed: {second.stderr[-2000:]}")
        totals = json.loads(second.stdout)["results"]["totals"]

    ready = bool(answer) and totals["success"] == 0 and totals["hosts"] > 0
    address, folder = lab.hosts[0].address, lab.folder
    print(
        f"""
The node answers at https://{address}/v1 . Call it:

    curl --cacert {folder}/ca/ca.crt https://{address}/v1/chat/completions \\
        -H "Authorization: Bearer $(cat {folder}/api.key)" -H "Content-Type: application/json" \\
        -d '{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "hello"}}], "max_tokens": 20}}'

Look around: . .venv/bin/activate && quench lab ssh node1
What it was given: quench render inventories/lab.py deploys/inference.py
Take it away: make demo-down

Seconds: {", ".join(f"{name} {seconds}" for name, seconds in _seconds.items())}
The second run changed {totals["success"]} of {totals["hosts"]} things.
Simulated: {"; ".join(SIMULATED)}. Real: Debian 12 with systemd, SSH, apt, vLLM, nginx.
"""
    )
    print(
        json.dumps(
            {"ready": ready, "second_run_changes": totals["success"], "seconds": _seconds, "simulated": SIMULATED}
        )
    )
    return 0 if ready else 1


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except LabError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
