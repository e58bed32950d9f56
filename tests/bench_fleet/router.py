"""A router in Python for comparison: litellm's proxy, in an environment of its own, with what litellm.txt pins.

It runs on this machine in the network of the node whose engine it calls, and is called there: over loopback, without
TLS, mutual TLS or firewall, with one key to compare. It has a worker for each core, as its manual recommends.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from quench.lab.progress import LabError, step
from quench.lab.state import cache_folder
from tests.bench_fleet.fleet import inside
from tests.lab.support import MODEL, Node

PORT = 4000
KEY = "sk-bench-router"
_REQUIREMENTS = Path(__file__).with_name("litellm.txt")
# It would ask the world for the prices of models, and tell it of itself.
_QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LITELLM_LOG": "ERROR"}


def version() -> str:
    """What litellm.txt pins."""
    line = next(line for line in _REQUIREMENTS.read_text().splitlines() if line.startswith("litellm=="))
    return line.split()[0].removeprefix("litellm==")


def prepare() -> Path:
    """The program. It is no requirement of the project.

    Raises:
        LabError: it cannot be installed.
    """
    pins = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:12]
    folder = cache_folder() / "bench" / f"litellm-{pins}-py{sys.version_info.major}{sys.version_info.minor}"
    if not (folder / ".ready").exists():
        with step("installing litellm"):
            pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
            for command in (
                [sys.executable, "-m", "venv", "--clear", str(folder)],
                # The list is whole. Of a dependency with an extra, pip takes a newer one than is pinned, and gives up.
                [*pip, "--require-hashes", "--no-deps", "-r", str(_REQUIREMENTS)],
            ):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode != 0:
                    raise LabError(f"{' '.join(command[:4])}: {done.stderr[-1000:]}")
        (folder / ".ready").touch()
    return folder / "bin" / "litellm"


@contextmanager
def running(program: Path, node: Node) -> Iterator[str]:
    """The router beside the engine of a node, on port 8000 there. Gives its URL."""
    settings = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"openai/{MODEL}",
                    "api_base": "http://127.0.0.1:8000/v1",
                    "api_key": "none",
                },
            }
        ],
        "general_settings": {"master_key": KEY},
    }
    via, url = inside(node), f"http://127.0.0.1:{PORT}"
    with tempfile.TemporaryDirectory(prefix="quench-router-") as folder:
        # YAML is a superset of JSON.
        config, log = Path(folder) / "config.yaml", Path(folder) / "log"
        config.write_text(json.dumps(settings))
        words = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(PORT),
                 "--num_workers", str(os.cpu_count())]  # fmt: skip
        path = f"{program.parent}:{os.environ['PATH']}"
        with open(log, "wb") as file:
            # In a session of its own, so that its workers can be ended with it.
            process = subprocess.Popen(
                [*via, *words], cwd=folder, env={"HOME": folder, "PATH": path, **_QUIET}, stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            ask = [
                *via,
                "curl",
                "--silent",
                "--fail",
                "--max-time",
                "2",
                "--output",
                "/dev/null",
                f"{url}/health/liveliness",
            ]
            end = time.monotonic() + 90
            while subprocess.run(ask, check=False).returncode != 0:
                if process.poll() is not None or time.monotonic() > end:
                    raise LabError(f"litellm does not come up: {log.read_text(errors='replace')[-1000:]}")
                time.sleep(0.5)
            yield url
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
