import re
import subprocess

from quench.operations import accounts, downloads, packages, services
from quench.operations.commands import shell_script


def test_a_command_that_changes_a_host_waits_for_what_a_killed_run_left_running(commands, install, wanted):
    found = [
        *map(str, install(wanted)),
        *commands(services._services, units=["engine.service"], managed=wanted),
        *commands(packages._packages, names=["nginx"], hold_back=[]),
        *commands(accounts._account, user="a", home="/a", shell="/bin/sh", groups=["b"]),
        *commands(downloads._model_files, folder="/a", url="http://a", sha256="00"),
    ]
    assert len(found) == 6
    # With an end to the waiting.
    assert all(re.match(r"flock --timeout \d+ --conflict-exit-code 75 (/run/\S+) sh -c ", command) for command in found)


def test_a_script_gets_its_arguments_as_they_are(tmp_path):
    (tmp_path / "say.sh").write_text("# A comment.\nprintf '%s|' \"$@\"\n")
    words = ["a b", "it's", "$HOME", "*", ""]
    command = shell_script(tmp_path / "say.sh", *words)
    assert "A comment" not in command
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "".join(f"{word}|" for word in words)
