"""systemd-analyze security, without a host, for each unit that Quench writes: at most 2.0, or what a waiver says."""

import re
import shutil
import subprocess

import pytest

from quench.files import CHECKOUT
from tests.scorecard.score import waivers
from tests.scorecard.units import LIMIT
from tests.unit.test_way_back import Tree

GOLDEN = CHECKOUT / "tests" / "golden"
# Hosts have the same units: one of each text is enough.
UNITS = {(path.name, path.read_text()): path for path in sorted(GOLDEN.rglob("etc/systemd/system/*.service"))}
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze on this machine")


def allowed(unit):
    """The most that a waiver, or its absence, allows a unit."""
    reason = waivers("units").get(unit)
    return LIMIT if reason is None else float(re.match(r"At most ([0-9.]+)\. ", reason)[1])


def exposure(path):
    words = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    return float(found[1])


def test_there_are_units():
    assert len(UNITS) > 10


@needs_systemd
@pytest.mark.parametrize("path", UNITS.values(), ids=lambda path: path.name)
def test_a_unit_is_shut_in_as_far_as_its_work_allows(path, tmp_path):
    copy = tmp_path / path.name
    copy.write_text(path.read_text())
    level = exposure(copy)
    assert level <= allowed(path.name)
    # A waiver that is no longer needed is one that nobody has looked at.
    assert path.name not in waivers("units") or level > LIMIT


@needs_systemd
def test_the_way_back_is_shut_in_as_well(tmp_path):
    tree = Tree(tmp_path)
    tree.keep([])
    (path,) = tree.units.glob("quench-rollback-*.service")
    assert exposure(path) <= LIMIT


def test_a_waiver_is_for_a_unit_that_is_there():
    assert set(waivers("units")) <= {path.name for path in UNITS.values()}
