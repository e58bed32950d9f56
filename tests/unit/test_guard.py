"""The proof of a guarded change: what is asked, and what becomes of the answer."""

import hashlib
import shlex
import subprocess

import pytest
from pyinfra.api import FunctionCommand

from quench import ManagedDirectory, ManagedFile, facts, guard

WANTED = [
    ManagedDirectory("/etc/door", mode=0o750),
    ManagedFile("/etc/door/lock.conf", "new\n", mode=0o600),
]
HASH, FORMER = (hashlib.sha256(text.encode()).hexdigest() for text in ("new\n", "former\n"))


def told(sha256=HASH, known=HASH, mode=600):
    """What a host says that has this content, and this in its manifest."""
    return [
        "stat 750 root root /etc/door/.",
        f"stat {mode} root root /etc/door/lock.conf",
        f"{sha256}  /etc/door/lock.conf",
        f"manifest {known} 600 root root /etc/door/lock.conf",
    ]


@pytest.fixture
def proof(commands):
    return lambda answers: commands(guard._prove, answers, role="door", managed=WANTED, guard=60)


def test_files_that_wait_for_the_proof_are_proved_by_a_new_login(proof):
    (command,) = proof(["waits"])
    assert command == str(FunctionCommand(guard._log_in_anew, ("door", 60), {}))


def test_files_that_are_there_and_wait_for_nothing_need_no_proof(proof):
    assert proof(told()) == []


@pytest.mark.parametrize(
    "answers",
    [
        told(FORMER, FORMER),
        # What somebody had changed by hand is back, and the manifest never knew of it.
        told(FORMER),
        told(known=FORMER),
        told(mode=644),
        [],
    ],
)
def test_a_host_that_went_back_by_itself_ends_the_run_with_what_to_do(proof, answers):
    (command,) = proof(answers)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "@fake: door_rollback_seconds: the host went back to the former files of door before this run came to log in "
        "anew; run again, with more seconds there, or with fewer hosts at a time: --limit\n"
    )


def test_the_question_needs_sudo_only_where_nothing_waits():
    asked = facts.ProvedFiles().command("door", ["/etc/a b"], [])
    before, _, behind = asked.partition("else sudo -n sh -c ")
    assert before == "if [ -e /etc/systemd/system/quench-rollback-door.timer ]; then echo waits; "
    assert shlex.split(behind)[0].rstrip(";") == facts.RoleFiles().command("door", ["/etc/a b"], [])


@pytest.mark.parametrize(
    ("state", "timer", "kept"),
    [("inactive", True, True), ("failed", True, True), ("activating", True, False), ("inactive", False, False)],
)
def test_files_are_kept_unless_the_way_back_has_begun(tmp_path, monkeypatch, state, timer, kept):
    monkeypatch.setattr(guard, "STATE_DIRECTORY", str(tmp_path / "state"))
    former = tmp_path / "state" / "guard" / "door"
    former.mkdir(parents=True)
    program = tmp_path / "systemctl"
    program.write_text(
        "#!/bin/sh\ncase $1 in\n"
        f"disable) [ \"$*\" = 'disable --quiet --now quench-rollback-door.timer' ] && {str(timer).lower()} ;;\n"
        f"is-active) echo {state}; [ {state} = active ] ;;\nesac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    words = shlex.split(str(guard._keep("door")))
    # It waits for a way back that works, as all that changes the host.
    assert words[0] == "flock"
    text = words[words.index("-c") + 1].replace("/etc/systemd/system", str(tmp_path))
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=False)
    assert (done.returncode == 0, former.exists()) == (kept, not kept)
