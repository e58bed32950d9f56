"""An engine that costs next to nothing, for measuring what stands before it: nginx on the loopback address.

It takes the place of a host's engine, on the same port: a plain request is answered at once, a stream has as many words
as `max_tokens` says, at an even pace. It is no model, and nothing but the words' number is as in a real one.
"""

from __future__ import annotations

import base64
from pathlib import Path

from quench.lab import fleet
from quench.lab.progress import LabError
from quench.lab.state import Lab

_FILES = Path(__file__).parent / "fast_engine_files"
UNIT = "fast-engine.service"
_FOLDER = "/run/fast-engine-files"


def files(model: str, *, port: int, seconds_a_word: float) -> dict[str, str]:
    """The engine's files, by their paths on the host.

    Args:
        model: the name that the engine serves, which is also the instance of vllm@.service that it takes the place of.
        seconds_a_word: from each word of a stream to the next, to the millisecond.
    """
    values = {"folder": _FOLDER, "model": model, "port": port, "milliseconds": round(seconds_a_word * 1000)}
    found = {}
    for name, folder in (("nginx.conf", _FOLDER), ("engine.js", _FOLDER), (UNIT, "/run/systemd/system")):
        text = (_FILES / name).read_text()
        for key, value in values.items():
            text = text.replace(f"@{key}@", str(value))
        found[f"{folder}/{name}"] = text
    return found


def start(lab: Lab, host: str, model: str, *, port: int = 8000, seconds_a_word: float = 1.0) -> None:
    """Stop a host's engine and start the fast one in its place, until `stop` or the host's next start.

    The host must have nginx and its module for njs, as every host with the role nginx has.

    Raises:
        LabError: it does not answer, with the end of its log.
    """
    script = ["set -eu"]
    for path, text in files(model, port=port, seconds_a_word=seconds_a_word).items():
        data = base64.b64encode(text.encode()).decode()
        script.append(f'mkdir -p "$(dirname {path})" && echo {data} | base64 -d >{path} && chmod 644 {path}')
    script += [
        f"chmod 755 {_FOLDER}",
        "systemctl daemon-reload",
        f"systemctl restart {UNIT}",
        # Unlike the engine's unit it counts as started before it listens.
        f"for _ in $(seq 50); do bash -c '</dev/tcp/127.0.0.1/{port}' 2>/dev/null && exit 0; sleep 0.1; done",
        f"journalctl -q --no-pager -n 5 -u {UNIT} >&2; exit 1",
    ]
    _run(lab, host, "\n".join(script))


def stop(lab: Lab, host: str, model: str) -> None:
    """Take the fast engine away and start the host's own again."""
    _run(
        lab,
        host,
        f"set -eu; systemctl stop {UNIT}; rm -rf /run/systemd/system/{UNIT} {_FOLDER}; systemctl daemon-reload; "
        f"systemctl start vllm@{model}.service",
    )


def _run(lab: Lab, host: str, script: str) -> None:
    done = fleet.execute(lab, host, "sh -s", stdin=script)
    if done.returncode != 0:
        raise LabError(f"the fast engine of {host}: {(done.stderr + done.stdout).strip()[-1000:]}")
