"""The script that brings the keyring into the running HAProxy, with one that exists in a folder alone."""

import os
import subprocess
import sys
import threading
import time

import pytest

from quench.files import CHECKOUT

SCRIPT = CHECKOUT / "roles" / "haproxy" / "maps.sh"
# HAProxy's answers, as far as the script asks: the maps are files, the next version of one has the end `.next`.
SOCAT = """\
#!{python}
import pathlib, sys
first, *lines = sys.stdin.read().splitlines()
folder, words = pathlib.Path({folder!r}), first.split()
path = lambda name: folder / name.replace("/", "_")
if words[0] == "show" and words[1] == "info":
    print("Pid: " + (folder / "now").read_text())
elif words[0] == "show":
    which = path(words[-1]).with_suffix(".next" if words[2].startswith("@") else "")
    print("".join(f"0x1 {{line}}\\n" for line in which.read_text().splitlines() if line))
elif words[0] == "prepare":
    path(words[-1]).with_suffix(".next").write_text("")
    print("New version created: 7")
elif words[0] == "add":
    with path(words[3]).with_suffix(".next").open("a") as file:
        file.write("".join(f"{{line}}\\n" for line in lines if line))
elif words[0] == "commit":
    path(words[-1]).with_suffix(".next").rename(path(words[-1]).with_suffix(""))
"""


@pytest.fixture
def haproxy(tmp_path, monkeypatch):
    """A HAProxy with one map, which can be asked and mended, and whose children are given by a shell command."""
    tools, inside = tmp_path / "bin", tmp_path / "inside"
    tools.mkdir()
    inside.mkdir()
    (tools / "socat").write_text(SOCAT.format(python=sys.executable, folder=str(inside)))
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    (tools / "socat").chmod(0o755)
    (tmp_path / "keys").write_text("hash-a team-a\nhash-b team-b\n")
    held = inside / str(tmp_path / "keys").replace("/", "_")
    held.write_text("hash-a team-a\n")

    def run(mode, main=0, now=0):
        (inside / "now").write_text(str(now))
        (tools / "systemctl").write_text(f"#!/bin/sh\necho {main}\n")
        (tools / "systemctl").chmod(0o755)
        words = ["sh", str(SCRIPT), mode, str(tmp_path / "keys")]
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)

    run.held = held
    return run


@pytest.fixture
def reloaded():
    """The main process of a HAProxy that was reloaded: it, its present child, and a former one that lives for 3 s."""
    script = "sleep 60 & echo $!; sleep 3 & wait $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as main:
        now = int(main.stdout.readline())
        yield main.pid, now
        os.kill(now, 9)


def test_to_ask_changes_nothing_and_waits_for_nobody(haproxy, reloaded):
    began = time.monotonic()
    done = haproxy("ask", *reloaded)
    assert (done.returncode, done.stdout.strip().rpartition("/")[2]) == (0, "keys")
    assert haproxy.held.read_text() == "hash-a team-a\n"
    assert time.monotonic() - began < 2.5


def test_the_map_of_the_process_becomes_that_of_the_file(haproxy, reloaded):
    time.sleep(3.5)  # nothing is left from before the reload
    began = time.monotonic()
    assert haproxy("mend", *reloaded).returncode == 0
    assert haproxy.held.read_text() == "hash-a team-a\nhash-b team-b\n"
    assert haproxy("ask", *reloaded).stdout == ""
    assert time.monotonic() - began < 3


def test_a_process_from_before_a_reload_is_waited_for_once_the_new_map_is_there(haproxy, reloaded):
    began, there = time.monotonic(), []

    def look():
        while "team-b" not in haproxy.held.read_text() and time.monotonic() - began < 30:
            time.sleep(0.02)
        there.append(time.monotonic() - began)

    looking = threading.Thread(target=look)
    looking.start()
    assert haproxy("mend", *reloaded).returncode == 0
    took = time.monotonic() - began
    looking.join()
    assert took >= 2.5
    assert there[0] < took - 0.5
