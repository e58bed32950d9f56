import subprocess
from types import SimpleNamespace

import pytest

from quench import Flow, ManagedFile
from roles.firewall import FirewallSettings
from roles.firewall import files as firewall
from roles.hardening import HardeningSettings
from roles.hardening import files as hardening
from tests.scorecard import cis, lab_tests, lockouts, relaxations
from tests.scorecard.page import page, table

REASON = "for a migration, change 4711"
FLOWS = [Flow("base", "out", ("world",), 123, "time", "udp"), Flow("nginx", "in", ("world",), 443, "clients")]


def lines(**relaxed):
    """All lines of the files of both roles."""
    data = {"platform": "debian-12", "firewall_zones": {"management": ["10.0.9.0/24"]}, "firewall_zone": "management"}
    data |= {f"{role}_relaxations": value for role, value in relaxed.items()}
    managed = [
        *firewall(FirewallSettings.load("node1", data), FLOWS if "firewall" in relaxed else []),
        *hardening(HardeningSettings.load("node1", data)),
    ]
    return [line for file in managed if isinstance(file, ManagedFile) for line in file.content.splitlines()]


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("hardening", "password-login"),
        ("hardening", "root-login"),
        ("hardening", "tcp-forwarding"),
        ("firewall", "world-in"),
        ("firewall", "world-out"),
    ],
)
def test_each_relaxation_is_on_the_scorecard_with_its_reason(role, name):
    both = {"world-in": REASON, "world-out": REASON} if role == "firewall" else {name: REASON}
    relaxed = relaxations.found(lines(**{role: both}))
    assert f"{role}_relaxations, {name}: {REASON}" in relaxed
    score = relaxations.score(relaxed)
    assert f"{name}: {REASON}" in page([score], {}, [])
    assert score.met and f"{len(both):>7}" in table([score])


def test_a_host_without_relaxations_has_none_on_the_scorecard():
    assert relaxations.found(lines()) == []


def test_each_rule_that_was_not_scored_is_on_the_page():
    results = {
        "a": "pass",
        "b": "fail",
        "c": "notapplicable",
        "d": "notchecked",
        "e": "informational",
        "f": "notchecked",
    }
    scan = cis.Scan(99.0, results)
    state = cis.State(scan, scan)
    score = cis.score(SimpleNamespace(root=lambda command: "1"), state, state)
    text = page([score], {}, [])
    assert "Not scored: 4, " in text
    for line in ("notapplicable: c", "notchecked: d, f", "informational: e"):
        assert f"{line}\n" in text


def report(*cases):
    return f'<testsuites><testsuite errors="0">{"".join(cases)}</testsuite></testsuites>'


def recorded(name, value, inner=""):
    property = f'<properties><property name="undone" value="{value}"/></properties>'
    return f'<testcase name="{name}">{property}{inner}</testcase>'


@pytest.fixture
def judged(monkeypatch):
    """What is made of pytest's code and report."""

    def run(code, text):
        def pretend(command, **options):
            assert options["timeout"] == 1800
            if code is None:
                raise subprocess.TimeoutExpired(command, 1800)
            path = next(word.partition("=")[2] for word in command if word.startswith("--junitxml="))
            with open(path, "w") as file:
                file.write(text)
            return SimpleNamespace(returncode=code, stdout="1 errors in the name of a test, and no error")

        monkeypatch.setattr(lab_tests.subprocess, "run", pretend)
        return lab_tests.cases("tests/lab/test_x.py")

    return run


def test_what_a_file_of_tests_found_is_read_from_its_report(judged):
    text = report(
        recorded("a", 1), recorded("b", 0, '<failure message="no">..</failure>'), recorded("c", 0, "<skipped/>")
    )
    assert [(case.name, case.passed) for case in judged(1, text)] == [("a", True), ("b", False), ("c", False)]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, report()),
        (1, report(recorded("a", 0, "<error>the lab did not come up</error>"))),
        (2, report(recorded("a", 1))),
        (None, ""),
    ],
)
def test_tests_that_did_not_come_to_their_end_say_nothing(judged, code, text):
    with pytest.raises(AssertionError, match="did not come to its end"):
        judged(code, text)


def test_lockouts_that_were_refused_and_that_were_undone_are_counted_apart(monkeypatch):
    found = [lab_tests.Case(f"case{number}", True, {"undone": str(int(number < 4))}) for number in range(11)]
    monkeypatch.setattr(lockouts, "cases", lambda *words: found)
    (note,) = lockouts.score(lockouts.attempt()).notes
    assert note.startswith("11 ways ") and "7 refused beforehand, 4 undone by the host itself" in note
