"""How pyinfra's SSH connector is tuned: values for the inventory's group_data."""

from __future__ import annotations

import logging
import socket
from typing import Any

from paramiko import Channel, SSHException, Transport
from pyinfra.api.host import Host
from typing_extensions import override

# paramiko logs each failed login with a traceback; pyinfra says in a line what it was.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class _Transport(Transport):
    """A transport that says in pyinfra's terms that its host went away.

    paramiko raises EOFError if the connection ends while a channel is opened. pyinfra expects an SSHException there
    and would end the whole run with a traceback.
    """

    @override
    def open_channel(self, *args: Any, **options: Any) -> Channel:
        try:
            return super().open_channel(*args, **options)
        except EOFError as error:
            raise SSHException("the connection was lost; run again when the host answers") from error


# A host that has lost its power says nothing: without these a run would wait for it for a quarter of an hour
# (tcp(7): tcp_retries2), or, while a command runs there, for ever. It is asked after 15 s of silence, and given up
# after another 45 s. Those that the controller's system does not know are left out.
_OPTIONS = {"TCP_NODELAY": 1, "TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}


def tuned(sock: Any, **options: Any) -> Transport:
    """A paramiko transport that sends small packets at once, and that notices within a minute if its host is gone.

    paramiko leaves Nagle's algorithm on, which meets the peer's delayed acknowledgement: each remote
    command then waits about 40 ms for nothing (RFC 1122 4.2.3.2; `make bench` measures it).
    """
    if isinstance(sock, socket.socket) and sock.type == socket.SOCK_STREAM and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _OPTIONS.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return _Transport(sock, **options)


def connect_once(host: Host) -> None:
    """Connect to a host that may be away, without the retries of the inventory: whoever waits for it asks again.

    Raises:
        Exception: whatever keeps the controller out.
    """
    data = getattr(getattr(host, "connector", None), "data", None) or {}
    retries, data["ssh_connect_retries"] = data.get("ssh_connect_retries", 0), 0
    try:
        host.connect(raise_exceptions=True, show_errors=False)
    finally:
        data["ssh_connect_retries"] = retries


# For `ssh_paramiko_connect_kwargs`, pyinfra's own key for arguments of paramiko's connect.
CONNECT_KWARGS = {"transport_factory": tuned}
