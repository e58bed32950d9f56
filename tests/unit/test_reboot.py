import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from quench.reboot import _come_back, _go_down, _reboot, reboot

# `quench.reboot` is also the name of the function.
module = sys.modules["quench.reboot"]
WHY = ["nouveau has the GPUs", "the module nvidia 1 is loaded, and 2 is installed"]
OLD, NEW = ["boot-1", "17"], ["boot-2", "17"]
UNITS = ["nvidia-persistenced.service"]


@pytest.fixture
def rebooting(commands):
    """The commands on a host that answers this to the question."""

    def run(*answers, allowed=True, ready="true"):
        wanted = {"question": "why", "ready": ready, "units": UNITS, "allowed": allowed}
        return commands(_reboot, answers, **wanted, key="nvidia_driver_reboot", seconds=900)

    return run


class Node:
    """A host as the two functions see it. `boots` is what it says of its boot at each login; None: it is down.

    `started` is whether the units that it is asked for have started, each time that it is asked.
    """

    name = "node1"

    def __init__(self, *boots):
        self.boots = list(boots)
        self.commands, self.said, self.started = [], [], [True]
        self.connected = True

    def connect(self, **_):
        if self.boots[0] is None:
            self.boots.pop(0)
            raise OSError("no route to host")

    def disconnect(self):
        self.connected = False

    def run_shell_command(self, command, **_):
        self.commands.append(str(command))
        if "reboot" in str(command):
            return True, SimpleNamespace(stdout_lines=[])
        if "list-jobs" in str(command):
            started = self.started.pop(0) if len(self.started) > 1 else self.started[0]
            return started, SimpleNamespace(stdout_lines=[])
        return True, SimpleNamespace(stdout_lines=self.boots.pop(0) if len(self.boots) > 1 else self.boots[0])

    def log_styled(self, text, **_):
        self.said.append(text)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """No waiting, and nothing lost before."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(module, "_lost", [])
    return now


def test_without_a_reason_nothing_happens(rebooting):
    assert rebooting() == []
    assert rebooting(allowed=False) == []


def test_never_ends_the_run_on_the_host_with_every_reason_and_the_key(rebooting):
    (command,) = rebooting(*WHY, allowed=False)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("@fake: nvidia_driver_reboot: a reboot is pending: ")
    assert all(reason in line for reason in WHY)
    assert "nvidia_driver_reboot = 'when-needed'" in line


def test_a_host_that_would_not_come_up_as_it_should_is_not_rebooted(rebooting):
    check, *rest = rebooting(*WHY, ready="echo the module is not built")
    done = subprocess.run(["sh", "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "not rebooted" in done.stderr
    assert "the module is not built" in done.stderr
    assert len(rest) == 2


def test_a_check_that_breaks_counts_as_a_reason_not_to_reboot(rebooting):
    check, *_ = rebooting(*WHY, ready="no-such-program-here")
    assert subprocess.run(["sh", "-c", check], capture_output=True, check=False).returncode == 1


def test_a_host_that_is_ready_passes_the_check(rebooting):
    check, *_ = rebooting(*WHY, ready="true")
    done = subprocess.run(["sh", "-c", check], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_hosts_are_rebooted_one_after_the_other(monkeypatch):
    given = {}
    monkeypatch.setattr(module, "_reboot", given.update)
    reboot("Reboot", question="why", ready="true", units=UNITS, allowed=True, key="k", seconds=9)
    # pyinfra's own argument for that.
    assert given["_serial"] is True


def test_a_host_goes_down_and_the_connection_with_it():
    node, before = Node(OLD), []
    assert _go_down(None, node, before) is True
    assert before == OLD
    assert [command for command in node.commands if command.endswith("systemctl --no-block reboot")]
    assert not node.connected


def test_a_host_is_back_only_with_another_boot():
    # It answers for a while before it goes down.
    node = Node(OLD, OLD, None, None, NEW)
    assert _come_back(None, node, OLD, UNITS, 900) is True
    assert node.said == []


def test_a_host_is_back_only_when_the_units_that_the_run_needs_have_started():
    node = Node(NEW)
    node.started = [False, False, True]
    assert _come_back(None, node, OLD, UNITS, 900) is True
    assert node.started == [True]
    node.started = [False]
    assert _come_back(None, node, OLD, UNITS, 10) is False


@pytest.mark.parametrize(
    ("pending", "back"),
    [
        ("", True),
        ("nvidia-persistenced.service", False),
        # Its model may take longer to load than the host to come back.
        ("vllm@llama.service", True),
    ],
)
def test_an_engine_that_loads_its_model_is_not_waited_for(tmp_path, pending, back):
    node = Node(NEW)
    _come_back(None, node, OLD, UNITS, 900)
    systemctl = tmp_path / "systemctl"
    # list-jobs names those that it is asked for and that have a job. systemctl(1)
    systemctl.write_text(
        f'#!/bin/sh\n[ "$1" = list-jobs ] || exit 0\nfor unit; do [ "$unit" != "{pending}" ] || echo "7 $unit"; done\n'
    )
    systemctl.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", node.commands[-1]], env=environment, check=False)
    assert (done.returncode == 0) is back


def test_a_host_that_answers_with_its_old_boot_for_ever_is_not_back():
    node = Node(OLD)
    assert _come_back(None, node, OLD, UNITS, 900) is False
    assert "still in the boot before" in node.said[0]


def test_after_a_host_that_is_lost_no_further_one_is_rebooted():
    lost, other = Node(*[None] * 1000), Node(OLD)
    lost.name = "node1"
    assert _come_back(None, lost, OLD, UNITS, 900) is False
    assert _go_down(None, other, []) is False
    assert [command for command in other.commands if "reboot" in command] == []
    assert "node1 did not come back" in other.said[0]
