"""Ctrl-C reaches a command where it waits, and nothing else: each in a process of its own, by a real signal."""

from __future__ import annotations

import subprocess
import sys

import pytest

from quench.files import CHECKOUT

_BEGIN = """\
import os, signal, sys
import gevent
from quench.interrupt import at_once, in_order

def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)

@in_order()
def command():
"""
# A connection is read by a greenlet of its own. It must live on.
_ANOTHER_GREENLET = """
    def read():
        gevent.sleep(0.05)
        ctrl_c()
        said.append("goes on reading")
    said = []
    reader = gevent.spawn(read)
    try:
        gevent.sleep(10)
    except KeyboardInterrupt:
        said.append("interrupted")
    reader.join()
    print(sorted(said))
command()
"""
# As paramiko's channels do when they are forgotten: whatever happens in there is swallowed.
_A_FINALIZER = """
    class Channel:
        def __del__(self):
            try:
                ctrl_c()
                print("closed")
            except:
                pass
    channel = Channel()
    del channel
    try:
        gevent.sleep(10)
    except KeyboardInterrupt:
        print("interrupted")
command()
"""
# As paramiko takes its locks. An exception between the two lines would leave it locked.
_A_LOCK = """
    from gevent.lock import BoundedSemaphore
    lock = BoundedSemaphore()
    try:
        lock.acquire(); ctrl_c()
        try:
            pass
        finally:
            lock.release()
        gevent.sleep(10)
    except KeyboardInterrupt:
        print("interrupted", "locked" if lock.locked() else "free")
command()
"""
_A_QUESTION = """
    try:
        with at_once():
            ctrl_c()
            sys.stdin.read()
    except KeyboardInterrupt:
        print("interrupted")
    ctrl_c()
    try:
        gevent.sleep(10)
    except KeyboardInterrupt:
        print("in order again")
command()
"""


@pytest.mark.parametrize(
    ("script", "said"),
    [
        pytest.param(_ANOTHER_GREENLET, "['goes on reading', 'interrupted']\n", id="another-greenlet"),
        pytest.param(_A_FINALIZER, "closed\ninterrupted\n", id="a-finalizer"),
        pytest.param(_A_LOCK, "interrupted free\n", id="a-lock"),
        pytest.param(_A_QUESTION, "interrupted\nin order again\n", id="a-question"),
    ],
)
def test_ctrl_c(script, said):
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + script], cwd=CHECKOUT, stdin=subprocess.PIPE, capture_output=True, text=True,
        timeout=30, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (said, "")
