"""An engine that costs next to nothing, for measuring what stands before it: nginx on the loopback address.

A plain request is answered at once; a stream has as many words as `max_tokens` says, at an even pace. It runs in the
engine's own unit, vllm@MODEL.service, so that a role starts, stops and drains it as it does the real one. It is no
model, and of a real answer it has only the form and the number of words.
"""

from __future__ import annotations

import base64
from pathlib import Path

from quench.lab import fleet
from quench.lab.progress import LabError
from quench.lab.state import Lab

_FILES = Path(__file__).parent / "fast_engine_files"
_FOLDER = "/run/fast-engine-files"


def files(model: str, *, port: int, seconds_a_word: float) -> dict[str, str]:
    """The engine's files, by their paths on the host.

    Args:
        model: the name that the engine serves, which is also the instance of vllm@.service.
        seconds_a_word: from each word of a stream to the next, to the millisecond.
    """
    values = {"folder": _FOLDER, "model": model, "port": port, "milliseconds": round(seconds_a_word * 1000)}
    paths = {
        f"{_FOLDER}/nginx.conf": "nginx.conf",
        f"{_FOLDER}/engine.js": "engine.js",
        f"{_drop_in(model)}/fast-engine.conf": "unit.conf",
    }
    return {path: _filled((_FILES / name).read_text(), values) for path, name in paths.items()}


def start(lab: Lab, host: str, model: str, *, port: int = 8000, seconds_a_word: float = 1.0) -> None:
    """Put the fast engine in the place of a host's engine, until `stop`, or until the host itself starts again.

    The host must have the engine's unit, and nginx with its module for njs: a host with the roles vllm and nginx.

    Raises:
        LabError: it does not answer, with the end of its log.
    """
    script = []
    for path, text in files(model, port=port, seconds_a_word=seconds_a_word).items():
        data = base64.b64encode(text.encode()).decode()
        script.append(f'mkdir -p "$(dirname {path})"; echo {data} | base64 -d >{path}; chmod 644 {path}')
    _run(lab, host, model, "\n".join([*script, f"chmod 755 {_FOLDER}"]))


def stop(lab: Lab, host: str, model: str) -> None:
    """Give the host its own engine back. Waits for the streams that have begun."""
    _run(lab, host, model, f"rm -rf {_drop_in(model)} {_FOLDER}")


def _drop_in(model: str) -> str:
    return f"/run/systemd/system/vllm@{model}.service.d"


def _filled(text: str, values: dict[str, object]) -> str:
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return text


def _run(lab: Lab, host: str, model: str, change: str) -> None:
    unit = f"vllm@{model}.service"
    # Stopped before the change: each of the two engines has its own signal for that.
    script = f"""
set -eu
systemctl stop {unit}
{change}
systemctl daemon-reload
systemctl start {unit} || {{ journalctl -q --no-pager -n 5 -u {unit} >&2; exit 1; }}
"""
    done = fleet.execute(lab, host, "sh -s", stdin=script)
    if done.returncode != 0:
        raise LabError(f"the fast engine of {host}: {(done.stderr + done.stdout).strip()[-1000:]}")
