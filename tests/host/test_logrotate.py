"""Log rotation: it runs each hour, knows the logs, and keeps them for as long as was asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Entry, Unit


@pytest.fixture(scope="module")
def trial(host: Host) -> str:
    """What logrotate would do now; it says so on both outputs."""
    return str(host.check_output("logrotate --debug /etc/logrotate.conf 2>&1"))


@pytest.fixture(scope="module")
def texts(host: Host, manifests: dict[str, dict[str, Entry]]) -> dict[str, str]:
    return {
        path: host.file(path).content_string for path in manifests["logrotate"] if path.startswith("/etc/logrotate.d/")
    }


def test_it_runs_each_hour_so_that_size_counts(host: Host, unit: Callable[[str], Unit]) -> None:
    timer = unit("logrotate.timer")
    assert host.service(timer.name).is_enabled
    assert timer.property("ActiveState") == "active", timer.journal()
    assert "hourly" in timer.property("TimersCalendar") or "*:00:00" in timer.property("TimersCalendar")


def test_its_last_run_succeeded(unit: Callable[[str], Unit]) -> None:
    service = unit("logrotate.service")
    assert service.property("Result") == "success", service.journal()


def test_it_finds_no_error_in_its_files(trial: str) -> None:
    errors = [line for line in trial.splitlines() if line.startswith("error")]
    assert errors == []


def test_logs_are_kept_by_age_and_not_by_number(texts: dict[str, str]) -> None:
    for path, text in texts.items():
        words = [line.split() for line in text.splitlines()]
        assert ["rotate", "-1"] in words, path
        assert re.search(r"^\s*maxage [1-9][0-9]*$", text, re.MULTILINE), path


def test_old_logs_carry_their_date(texts: dict[str, str]) -> None:
    for path, text in texts.items():
        assert re.search(r"^\s*dateext$", text, re.MULTILINE), path


def test_new_logs_are_not_for_everybody(host: Host, texts: dict[str, str]) -> None:
    for path, text in texts.items():
        if "copytruncate" in text:
            # The service's own file stays, in a folder that others do not enter.
            folder = text.split(" {")[0].splitlines()[-1].rpartition("/")[0]
            assert not host.file(folder).mode & 0o007, folder
            continue
        assert re.search(r"^\s*create 0?6[0-7]0 \S+ \S+$", text, re.MULTILINE), path


def test_the_logs_of_nginx_are_rotated(host: Host, manifests: dict[str, dict[str, Entry]], trial: str) -> None:
    if "nginx" not in manifests:
        pytest.skip("no nginx on this host")
    configuration = host.file("/etc/nginx/nginx.conf").content_string
    logs = re.findall(r"^\s*(?:access|error)_log (/[^\s;]+)", configuration, re.MULTILINE)
    assert logs != []
    missed = [log for log in logs if f"considering log {log}" not in trial]
    assert missed == []
