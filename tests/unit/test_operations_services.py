import re
import subprocess

import pytest

from quench import ManagedFile, secrets
from quench.operations import services

UNIT = "engine.service"


@pytest.fixture
def service(shell, commands, wanted):
    """The command that keeps a unit running, on a host where systemd answers this."""

    def run(answers=(), managed=wanted):
        found = commands(services._services, answers, units=[UNIT], managed=managed)
        return [shell(command) for command in found]

    return run


@pytest.fixture
def settled(service):
    """What a host answers after a first run."""
    (command,) = service()
    stamps = dict(re.findall(r"echo (\w{64}) >\S+\.(restart|reload)", command))
    hashes = {kind: digest for digest, kind in stamps.items()}
    return {
        "ActiveState": "active",
        "UnitFileState": "enabled",
        "NeedDaemonReload": "no",
        "ConditionResult": "yes",
        "ConditionTimestampMonotonic": "4711",
        "restarted": hashes["restart"],
        "reloaded": hashes["reload"],
    }


def answers(values, unit=UNIT):
    return [f"unit={unit}", *(f"{key}={value}" for key, value in values.items())]


def test_a_unit_that_never_ran_is_freed_enabled_and_restarted_in_this_order(service):
    (command,) = service()
    steps = ["unmask --runtime", "enable", "daemon-reload", "restart"]
    places = [command.index(f"systemctl {step}") for step in steps]
    assert places == sorted(places)


def test_several_units_are_read_at_once_and_started_one_after_the_other(shell, commands, wanted):
    other = "other.service"
    found = commands(services._services, units=[UNIT, other], managed=wanted)
    (command,) = (shell(each) for each in found)
    assert command.count("systemctl daemon-reload") == 1
    assert f"systemctl enable --quiet --no-reload {UNIT} {other}" in command
    assert command.index(f"systemctl restart {UNIT}") < command.index(f"systemctl restart {other}")


@pytest.mark.parametrize("works", [True, False])
def test_a_restart_is_stamped_if_it_worked_and_says_why_if_it_did_not(service, tmp_path, monkeypatch, works):
    monkeypatch.setattr(services, "STATE_DIRECTORY", str(tmp_path / "state"))
    for name, body in {
        "systemctl": "true" if works else '[ "$1" != restart ]',
        "journalctl": "echo the reason",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    done = subprocess.run(["sh", "-c", *service()], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is works
    assert (done.stderr == "") is works
    # A stamp without success would hide the failed restart from the next run.
    assert len(list(tmp_path.glob("state/converged/*"))) == (2 if works else 0)
    assert works or done.stderr == "the reason\n"


def test_a_unit_that_is_on_its_way_up_with_its_present_files_is_waited_for_and_not_restarted(service, settled):
    (command,) = service(answers(settled | {"ActiveState": "activating"}))
    assert f"systemctl start {UNIT}" in command
    assert "systemctl restart" not in command
    (command,) = service(answers(settled | {"ActiveState": "activating", "restarted": "former"}))
    assert f"systemctl restart {UNIT}" in command


def test_a_restart_that_a_killed_run_has_done_meanwhile_is_not_done_again(service, tmp_path, monkeypatch):
    monkeypatch.setattr(services, "STATE_DIRECTORY", str(tmp_path / "state"))
    (tmp_path / "systemctl").write_text(f'#!/bin/sh\necho "$1" >>{tmp_path}/done\n')
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for _ in range(2):
        subprocess.run(["sh", "-c", *service()], check=True)
    assert (tmp_path / "done").read_text().split().count("restart") == 1


def test_a_unit_that_runs_with_its_present_files_gets_no_command(service, settled):
    assert service(answers(settled)) == []


def test_a_changed_file_that_a_reload_reads_reloads_and_does_not_restart(service, settled, wanted, me):
    changed = [wanted[0], ManagedFile(wanted[1].dest, "new", reloads=UNIT, **me), wanted[2]]
    (command,) = service(answers(settled), managed=changed)
    assert f"systemctl reload {UNIT}" in command
    assert "systemctl restart" not in command
    assert "daemon-reload" not in command


def test_a_changed_file_that_only_a_start_reads_restarts(service, settled, wanted, me):
    changed = [wanted[0], wanted[1], ManagedFile(wanted[2].dest, "b\n", mode=0o640, restarts=UNIT, **me)]
    (command,) = service(answers(settled), managed=changed)
    assert f"systemctl restart {UNIT}" in command


def test_a_file_of_another_unit_touches_nothing(service, settled, wanted, me):
    other = ManagedFile("/etc/other.conf", "x", restarts="other.service", **me)
    assert service(answers(settled), managed=[*wanted, other]) == []


def test_a_new_value_of_a_secret_restarts(service, secret_file, monkeypatch):
    before = service(managed=[secret_file])
    assert service(managed=[secret_file]) == before
    monkeypatch.setenv("QUENCH_TEST_INSTALL", "another")
    secrets._resolve.cache_clear()
    assert service(managed=[secret_file]) != before


def test_a_unit_that_died_is_restarted_although_nothing_changed(service, settled):
    (command,) = service(answers(settled | {"ActiveState": "failed"}))
    assert f"systemctl restart {UNIT}" in command


def test_a_restart_that_failed_last_time_is_tried_again(service, settled):
    # install.sh removes the stamp before it changes a file.
    assert f"systemctl restart {UNIT}" in service(answers(settled | {"restarted": ""}))[0]
    assert f"systemctl reload {UNIT}" in service(answers(settled | {"reloaded": ""}))[0]


def test_a_unit_that_a_condition_keeps_from_running_is_settled_once_it_was_tried(service, settled):
    skipped = {"ActiveState": "inactive", "ConditionResult": "no"}
    assert service(answers(settled | skipped)) == []
    assert service(answers(settled | skipped | {"restarted": ""})) != []
    assert service(answers(settled | skipped | {"ConditionResult": "yes"})) != []
    # Stopped and disabled by somebody: systemd has forgotten it, and read it anew.
    assert service(answers(settled | skipped | {"ConditionTimestampMonotonic": "0"})) != []


def test_a_unit_that_was_disabled_is_enabled_without_a_restart(service, settled):
    (command,) = service(answers(settled | {"UnitFileState": "disabled"}))
    assert f"systemctl enable --quiet --no-reload {UNIT}" in command
    assert "systemctl restart" not in command


def test_a_unit_file_that_changed_on_disk_is_read_again_without_a_restart(service, settled):
    (command,) = service(answers(settled | {"NeedDaemonReload": "yes"}))
    assert "systemctl daemon-reload" in command
    assert "systemctl restart" not in command
