import socket
import threading

import paramiko
import pytest

from quench.transport import tuned


class GoesAway(paramiko.ServerInterface):
    """An SSH server that lets everyone in, and is gone when a command is to be run."""

    def __init__(self, connection):
        self.connection = connection

    def check_auth_none(self, username):
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind, chanid):
        self.connection.shutdown(socket.SHUT_RDWR)
        return paramiko.OPEN_SUCCEEDED


@pytest.fixture
def ends():
    """Both ends of a connection over loopback."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as near,
        server.accept()[0] as far,
    ):
        yield near, far


def test_small_packets_go_at_once(ends):
    near, _ = ends
    assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
    tuned(near)
    assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_a_host_that_says_nothing_is_given_up_within_a_minute(ends):
    near, _ = ends
    tuned(near)
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    silence, again, times = (
        near.getsockopt(socket.IPPROTO_TCP, option)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    )
    assert silence + again * times <= 60
    assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 60_000


def test_a_host_that_goes_away_is_an_error_that_pyinfra_reports(ends):
    near, far = ends
    server = paramiko.Transport(far)
    server.add_server_key(paramiko.ECDSAKey.generate())
    server.start_server(threading.Event(), GoesAway(far))
    client = tuned(near)
    client.start_client(timeout=5)
    client.auth_none("install")
    with pytest.raises(paramiko.SSHException, match="run again when the host answers"):
        client.open_session(timeout=5)
    client.close()
    server.close()
