"""What is asked before a run connects to anything."""

import socket
import threading
import time
from types import SimpleNamespace

import pytest

from quench.preflight import _knock


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def host(port):
    return SimpleNamespace(name="node1", data={"ssh_hostname": "127.0.0.1", "ssh_port": port})


def test_an_sshd_that_is_just_starting_anew_is_waited_for(port):
    def start():
        time.sleep(0.3)
        with socket.create_server(("127.0.0.1", port)) as listener:
            listener.accept()[0].close()

    thread = threading.Thread(target=start)
    thread.start()
    assert _knock(host(port)) is None
    thread.join()


def test_where_nobody_listens_the_problem_says_what_helps(port):
    problem = _knock(host(port))
    assert problem is not None
    assert problem.what == f"127.0.0.1 port {port} does not answer: Connection refused"
    assert "--exclude node1" in problem.remedy
