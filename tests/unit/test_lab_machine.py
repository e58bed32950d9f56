import os

import pytest

from quench.lab import machine
from quench.lab.machine import detect
from quench.lab.progress import LabError

ALL_CAPABILITIES = "CapInh:\t0000000000000000\nCapEff:\t000001ffffffffff\n"
WITHOUT_SYS_RESOURCE = "CapInh:\t000001ffffffffff\nCapEff:\t000001fffeffffff\n"


@pytest.fixture
def cgroups(tmp_path):
    """A tree of control groups: version 2 with these controllers, or, with None, the hybrid of both versions."""

    def make(controllers):
        if controllers is None:
            for name in ("unified", "pids", "memory"):
                (tmp_path / name).mkdir()
            (tmp_path / "unified" / "cgroup.controllers").touch()
        else:
            (tmp_path / "cgroup.controllers").write_text(f"{controllers}\n")
        return tmp_path

    return make


def test_an_ordinary_workstation_needs_no_workaround(cgroups):
    found = detect(cgroups("cpuset cpu io memory hugetlb pids rdma misc"), ALL_CAPABILITIES)
    assert (found.prefix, found.run_flags, found.notes()) == ([], [], [])


def test_a_hybrid_machine_that_may_not_raise_limits_gets_every_workaround_and_says_each(cgroups):
    found = detect(cgroups(None), WITHOUT_SYS_RESOURCE)
    assert found.prefix[0] == "nsenter"
    assert {"--runtime=runc", "--pids-limit=0"} < set(found.run_flags)
    assert [flag for flag in found.run_flags if flag.startswith("--ulimit=nofile=")]
    assert len(found.notes()) == 3


def test_a_hybrid_machine_with_all_capabilities_keeps_its_limits(cgroups):
    found = detect(cgroups(None), ALL_CAPABILITIES)
    assert found.prefix
    assert found.run_flags == ["--pids-limit=0"]
    assert not any("SYS_RESOURCE" in note for note in found.notes())


def test_a_machine_that_may_not_raise_limits_but_is_ordinary_else_gets_fixed_limits_alone(cgroups):
    found = detect(cgroups("cpu pids"), WITHOUT_SYS_RESOURCE)
    assert found.prefix == []
    assert "--runtime=runc" in found.run_flags
    assert "--pids-limit=0" not in found.run_flags
    assert len(found.notes()) == 1


def test_a_machine_without_the_pids_controller_limits_no_processes(cgroups):
    assert detect(cgroups("cpu memory"), ALL_CAPABILITIES).run_flags == ["--pids-limit=0"]


def test_looking_at_a_machine_changes_nothing(cgroups):
    folder = cgroups(None)
    before = sorted(folder.rglob("*"))
    detect(folder, WITHOUT_SYS_RESOURCE)
    assert sorted(folder.rglob("*")) == before


def test_missing_tools_are_named_by_the_package_that_brings_them(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(machine, "TOOLS", {"no-such-tool": "its-package", "sh": "dash"})
    with pytest.raises(LabError, match=r"apt-get install its-package$"):
        machine.require_tools()


def test_who_is_not_root_is_told_so_before_anything_else(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="as root"):
        machine.require_tools()


def test_a_program_that_fails_is_shown_with_its_own_words():
    with pytest.raises(LabError, match=r"sh -c .*: the reason"):
        machine.run("sh", "-c", "echo the reason >&2; exit 1")
    assert machine.run("sh", "-c", "echo out; exit 1", check=False) == "out"
