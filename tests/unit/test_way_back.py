"""What install.sh keeps before a guarded change, and what rollback.sh makes of it, in a tree of their own."""

import os
import re
import subprocess

import pytest

from quench.files import CHECKOUT
from roles.hardening.files import EDITED, PAM_STAMP

REMOTE = CHECKOUT / "quench" / "remote"
_PROGRAMS = {
    # Whether the unit's file is there still tells whether systemd could run its ExecStop.
    "systemctl": """\
for unit; do :; done
file=present; [ -e "$FAKE/units/$unit" ] || file=gone
echo "$1 $unit $file" >>"$FAKE/calls"
case $1 in
is-active) cat "$FAKE/$unit.active" ;;
is-enabled) cat "$FAKE/$unit.enabled" ;;
esac
""",
    "flock": "",
    "logger": "",
}


class Tree:
    def __init__(self, folder):
        self.folder, self.state, self.units = folder, folder / "state", folder / "units"
        self.guard = self.state / "guard" / "door"
        for path in (folder / "bin", folder / "stage", self.units, self.state / "converged"):
            path.mkdir(parents=True)
        for name, text in _PROGRAMS.items():
            (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}")
            (folder / "bin" / name).chmod(0o755)

    def shell(self, text, *arguments):
        text = text.replace("/etc/systemd/system", str(self.units))
        text = text.replace("/run/quench.lock", str(self.folder / "lock"))
        environment = {**os.environ, "FAKE": str(self.folder), "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["sh", "-c", text, "sh", *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def keep(self, paths, units=()):
        """The part of install.sh that keeps these files and units, and starts the timer."""
        for name, lines in {"manifest": [f"0 644 root root {path}" for path in paths], "beside": [], "rollback": [],
                            "guarded": units}.items():  # fmt: skip
            (self.folder / "stage" / name).write_text("".join(f"{line}\n" for line in lines))
        script = (REMOTE / "install.sh").read_text()
        (part,) = re.findall(r'^if \[ -n "\$guard_seconds" \].*?^fi$', script, re.MULTILINE | re.DOTALL)
        self.shell(f"set -eu; role=door state={self.state} stage={self.folder}/stage guard_seconds=60\n{part}")

    def go_back(self):
        self.calls(forget=True)
        self.shell((REMOTE / "rollback.sh").read_text(), "door", str(self.state))

    def unit(self, name, active, enabled):
        (self.folder / f"{name}.active").write_text(f"{active}\n")
        (self.folder / f"{name}.enabled").write_text(f"{enabled}\n")
        return name

    def calls(self, *, forget=False):
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        if forget:
            path.unlink(missing_ok=True)
        return [line for line in lines if "daemon-reload" not in line and "quench-rollback" not in line]


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_files_come_back_and_those_that_were_not_there_go(tree):
    kept, new = tree.folder / "kept.conf", tree.folder / "new.conf"
    kept.write_text("former")
    tree.keep([kept, new])
    kept.write_text("changed")
    new.write_text("changed")
    tree.go_back()
    assert kept.read_text() == "former"
    assert not new.exists() and not tree.guard.exists()
    assert list(tree.units.iterdir()) == []


def test_a_copy_of_a_run_that_was_killed_while_it_copied_is_made_anew(tree):
    path = tree.folder / "door.conf"
    path.write_text("former")
    cut_off = tree.guard / f"tree{path}"
    cut_off.parent.mkdir(parents=True)
    cut_off.write_text("for")
    tree.keep([path])
    assert cut_off.read_text() == "former"
    # But for one that has changed the host, and was not proved: what it found is what the host goes back to.
    path.write_text("unproved")
    tree.keep([path])
    assert cut_off.read_text() == "former"


def test_what_did_not_run_is_stopped_while_its_file_is_there(tree):
    unit = tree.unit("forward.service", "inactive", "")
    tree.keep([tree.units / unit], [unit])
    (tree.units / unit).touch()
    tree.go_back()
    assert tree.calls() == [f"disable {unit} present", f"stop {unit} present"]
    assert not (tree.units / unit).exists()


@pytest.mark.parametrize(
    ("name", "active", "ends"),
    [
        ("door.service", "active", "restart"),
        # What was only just starting is no unit that nobody wanted.
        ("door.service", "activating", "restart"),
        ("door.service", "reloading", "restart"),
        ("door.service", "inactive", "stop"),
        ("door.service", "failed", "stop"),
        # Started by its socket, for whoever logs in: the controller too.
        ("ssh.service", "inactive", "restart"),
        ("ssh.service", "failed", "restart"),
    ],
)
def test_a_unit_is_stopped_only_if_it_did_not_run(tree, name, active, ends):
    tree.keep([], [tree.unit(name, active, "enabled")])
    tree.go_back()
    verbs = {call.split()[0] for call in tree.calls()}
    # What failed too often with the new files is not started again before systemd has forgotten that.
    assert verbs == {"enable", ends} | ({"reset-failed"} if ends == "restart" else set())


def test_what_was_proved_in_the_last_moment_stays(tree):
    path = tree.folder / "door.conf"
    tree.keep([path], [tree.unit("door.service", "inactive", "disabled")])
    path.write_text("proved")
    (tree.guard / "armed").unlink()
    tree.go_back()
    assert path.read_text() == "proved" and tree.calls() == []
    script = (REMOTE / "rollback.sh").read_text()
    # It looks when nobody else changes the host any more.
    assert script.index("\nflock ") < script.index('[ -e "$guard/armed" ]')


@pytest.mark.parametrize(
    ("before", "now", "calls"),
    [
        ("active", "active", ["enable"]),
        ("active", "failed", ["enable", "reset-failed", "restart"]),
        # In the midst of its start, as an engine that loads.
        ("activating", "activating", ["enable"]),
        ("activating", "inactive", ["enable", "reset-failed", "restart"]),
        ("active", "activating", ["enable", "reset-failed", "restart"]),
        ("inactive", "activating", ["enable", "stop"]),
    ],
)
def test_a_release_that_comes_back_has_its_units_as_they_were(tree, before, now, calls):
    release = tree.state / "release"
    release.mkdir()
    (tree.state / "manifest").mkdir()
    for kind in ("restart", "reload"):
        (tree.state / "converged" / f"engine.service.{kind}").write_text("stamp")
    stamps = str(tree.state / "converged").lstrip("/")
    subprocess.run(["tar", "-C", "/", "-cf", release / "former.tar", stamps], check=True)
    (release / "units").write_text(f"{tree.unit('engine.service', now, 'enabled')} {before} enabled\n")
    tree.shell((REMOTE / "restore_release.sh").read_text(), str(tree.state))
    verbs = [call.split()[0] for call in tree.calls()]
    assert [verb for verb in verbs if verb not in ("is-active", "unmask")] == calls


def test_the_stamp_of_pam_goes_back_with_the_files_of_pam():
    assert PAM_STAMP in EDITED
    assert f"\nstamp={PAM_STAMP}\n" in (CHECKOUT / "roles" / "hardening" / "host.sh").read_text()
