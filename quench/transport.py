"""How pyinfra's SSH connector is tuned: values for the inventory's group_data."""

from __future__ import annotations

import socket
from typing import Any

from paramiko import Transport


def without_delay(sock: Any, **options: Any) -> Transport:
    """A paramiko transport that sends small packets at once.

    paramiko leaves Nagle's algorithm on, which meets the peer's delayed acknowledgement: each remote
    command then waits about 40 ms for nothing (RFC 1122 4.2.3.2; `make bench` measures it).
    """
    if isinstance(sock, socket.socket) and sock.type == socket.SOCK_STREAM and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Transport(sock, **options)


# For `ssh_paramiko_connect_kwargs`, pyinfra's own key for arguments of paramiko's connect.
CONNECT_KWARGS = {"transport_factory": without_delay}
