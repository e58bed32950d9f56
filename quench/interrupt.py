"""Ctrl-C, and what ends a job of CI, for commands that then leave things in order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import gevent

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_in_order() -> None:
    """From now on, KeyboardInterrupt reaches the greenlet that calls this, and only where it waits.

    Python raises it wherever it happens to be. In a greenlet that reads a connection it would leave that dead; between
    the taking of one of paramiko's locks and the `try` that gives it back, or in one of its finalizers, it would leave
    that connection locked. Whoever asks the host next would wait for ever.
    """
    command = gevent.getcurrent()

    def interrupt(*_: object) -> None:
        gevent.get_hub().loop.run_callback(command.throw, KeyboardInterrupt)

    for number in _SIGNALS:
        signal.signal(number, interrupt)


@contextmanager
def at_once() -> Iterator[None]:
    """While somebody is asked at the terminal: nothing else runs then that could be harmed."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
