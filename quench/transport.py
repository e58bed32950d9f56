"""How pyinfra's SSH connector is tuned: values for the inventory's group_data."""

from __future__ import annotations

import socket
from typing import Any

from paramiko import Channel, SSHException, Transport
from typing_extensions import override


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


def without_delay(sock: Any, **options: Any) -> Transport:
    """A paramiko transport that sends small packets at once.

    paramiko leaves Nagle's algorithm on, which meets the peer's delayed acknowledgement: each remote
    command then waits about 40 ms for nothing (RFC 1122 4.2.3.2; `make bench` measures it).
    """
    if isinstance(sock, socket.socket) and sock.type == socket.SOCK_STREAM and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return _Transport(sock, **options)


# For `ssh_paramiko_connect_kwargs`, pyinfra's own key for arguments of paramiko's connect.
CONNECT_KWARGS = {"transport_factory": without_delay}
