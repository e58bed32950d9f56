"""Listeners that say who they are, and callers that try many of them at once. Runs on lab hosts, on its own.

packets.py serve NAME ADDRESS,... PORT/PROTOCOL,...
packets.py call <calls.json      [[ADDRESS, "PORT/PROTOCOL"], ...]; prints what each call heard, in the same order
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

# Longer than the second after which the kernel sends a first packet again.
PATIENCE = 2.5
# A call that nothing came back from begins with this; whatever else was heard is a packet that passed.
SILENCE = "nothing: "
# Each service has something to say to it: a request for HTTP, and for a name server a question with the number "QU".
_REQUEST = b"GET / HTTP/1.0\r\n\r\n"
_QUESTION = b"QU\x01\0\0\1\0\0\0\0\0\0\6quench\0\0\1\0\1"
_TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_IPV6_FREEBIND = 78  # linux/in6.h; Python has no name for it
_IP_FREEBIND = 15


def serve(name: str, addresses: list[str], ports: list[str]) -> None:
    """Answer with a name on all ports that no other program has, for ever."""
    for address, port in itertools.product(addresses, ports):
        listener = _listener(address, port)
        if listener is not None:
            answer = _answer_calls if port.endswith("tcp") else _answer_datagrams
            threading.Thread(target=answer, args=(listener, name.encode())).start()
    # The first process of a container is not ended by a signal that it does not handle: pid_namespaces(7).
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    _say_ready()
    threading.Event().wait()


def call(calls: list[tuple[str, str]]) -> list[str]:
    """What each of the calls hears, all at once."""
    with ThreadPoolExecutor(max(len(calls), 1)) as pool:
        return list(pool.map(_heard, calls))


def _listener(address: str, port: str) -> socket.socket | None:
    number, _, protocol = port.partition("/")
    listener = _socket(address, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Bound to an address of its own beside a service on the loopback address alone; the address may come later.
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    else:
        listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    try:
        listener.bind((address, int(number)))
        if protocol == "tcp":
            listener.listen(200)
    except OSError as error:
        listener.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None  # a service of the host has it, and answers by itself
    return listener


def _answer_calls(listener: socket.socket, name: bytes) -> None:
    while True:
        connection, _ = listener.accept()
        # Whoever says nothing keeps nobody else waiting.
        threading.Thread(target=_answer, args=(connection, name)).start()


def _answer(connection: socket.socket, name: bytes) -> None:
    with connection:
        connection.settimeout(PATIENCE)
        try:
            connection.sendall(name)
            # What is not read before the end would reset the connection, and take the answer away.
            connection.recv(1000)
        except OSError:
            pass


def _answer_datagrams(listener: socket.socket, name: bytes) -> None:
    while True:
        _, caller = listener.recvfrom(1000)
        listener.sendto(name, caller)


def _heard(called: tuple[str, str]) -> str:
    address, port = called
    number, _, protocol = port.partition("/")
    connected = False
    with _socket(address, protocol) as caller:
        caller.settimeout(PATIENCE)
        try:
            caller.connect((address, int(number)))
            connected = protocol == "tcp"
            caller.send(_REQUEST if connected else _QUESTION)
            return caller.recv(100).decode("latin-1").split("\r\n")[0]
        except OSError as error:
            # A handshake is made of packets too.
            return f"a handshake, and then {error}" if connected else f"{SILENCE}{error}"


def _socket(address: str, protocol: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, _TYPES[protocol])


def _say_ready() -> None:
    """To systemd, if that has started this, and else to whoever reads: sd_notify(3)."""
    manager = os.environ.get("NOTIFY_SOCKET")
    if manager is None:
        print("ready", flush=True)
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", manager.replace("@", "\0", 1))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3].split(","), sys.argv[4].split(","))
    else:
        print(json.dumps(call([(address, port) for address, port in json.load(sys.stdin)])))
