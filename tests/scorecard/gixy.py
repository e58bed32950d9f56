"""gixy-ng on the gateway's whole configuration, as the nginx on the host reads it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from quench.lab.progress import LabError, step
from quench.lab.state import cache_folder
from tests.lab.support import Node
from tests.scorecard.score import Score, waivers

_REQUIREMENTS = Path(__file__).with_name("gixy.txt")


def prepare() -> Path:
    """gixy in an environment of its own, with what gixy.txt pins. It is no requirement of the project."""
    pins = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:12]
    folder = cache_folder() / "scorecard" / f"gixy-{pins}-py{sys.version_info.major}{sys.version_info.minor}"
    program = folder / "bin" / "gixy"
    if not (folder / ".ready").exists():
        with step("installing gixy"):
            pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
            for command in (
                [sys.executable, "-m", "venv", "--clear", str(folder)],
                [*pip, "-r", str(_REQUIREMENTS)],
            ):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode != 0:
                    raise LabError(f"{' '.join(command[:4])}: {done.stderr[-1000:]}")
        (folder / ".ready").touch()
    return program


def findings(host: Node, program: Path) -> list[tuple[str, str]]:
    """Each finding: the plugin's name, and what it says."""
    # `-T` checks and prints all files of the configuration, in the form that gixy takes.
    configuration = host.root("nginx -T 2>/dev/null")
    done = subprocess.run(
        [str(program), "--format", "json", "-"], input=configuration, capture_output=True, text=True, check=False
    )
    # 1: there are findings.
    if done.returncode not in (0, 1) or not done.stdout.strip():
        raise LabError(f"gixy could not read the configuration: {(done.stderr + done.stdout)[-1000:]}")
    return [
        (item["plugin"], f"{item['severity']}: {item['plugin']}: {item['reason']}") for item in json.loads(done.stdout)
    ]


def version(program: Path) -> str:
    # Advertisements follow the first line.
    return subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[
        0
    ]


def score(host: Node, program: Path) -> Score:
    found = findings(host, program)
    waived = {plugin: reason for plugin, reason in waivers("gixy").items() if plugin in dict(found)}
    left = [text for plugin, text in found if plugin not in waived]
    return Score(
        judge="gixy: findings",
        before=None,
        after=len(left),
        limit=0,
        at_most=True,
        findings=left,
        waived=waived,
        notes=[f"{version(program)}, on what `nginx -T` prints."],
    )
