import shutil
import subprocess

import pytest

from quench.files import CHECKOUT
from quench.operations.commands import stripped

REMOTE = sorted((CHECKOUT / "quench" / "remote").glob("*.sh"))
# Those of a role ask, and change nothing: they go on after an answer.
SCRIPTS = [*REMOTE, *sorted((CHECKOUT / "roles").glob("*/*.sh"))]
CHECKERS = [["sh", "-n"]]
if shutil.which("shellcheck"):
    CHECKERS.append(["shellcheck", "--shell=sh", "--severity=warning"])


def test_there_are_scripts():
    assert SCRIPTS


@pytest.mark.parametrize("checker", CHECKERS, ids=lambda checker: checker[0])
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_remote_script_is_good_shell(script, checker):
    done = subprocess.run([*checker, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_remote_script_is_good_shell_as_it_travels_without_its_comments(script):
    text = stripped(script)
    assert "\n#" not in text
    done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", REMOTE, ids=lambda script: script.name)
def test_a_remote_script_stops_at_the_first_error_and_at_a_missing_argument(script):
    first = next(line for line in script.read_text().splitlines() if line and not line.startswith("#"))
    assert first == "set -eu"
    done = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode != 0
