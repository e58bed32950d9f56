"""Ctrl-C, and what ends a job of CI, for commands that then leave things in order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def in_order() -> Iterator[None]:
    """In here, KeyboardInterrupt reaches the greenlet that has entered, and only where it waits.

    Python raises it wherever it happens to be. In a greenlet that reads a connection it would leave that dead; between
    the taking of one of paramiko's locks and the `try` that gives it back, or in one of its finalizers, it would leave
    that connection locked. Whoever asks the host next would wait for ever.
    """
    command = gevent.getcurrent()

    def interrupt(*_: object) -> None:
        gevent.get_hub().loop.run_callback(command.throw, KeyboardInterrupt)

    with _handled(interrupt):
        yield


@contextmanager
def at_once() -> Iterator[None]:
    """While somebody is asked at the terminal: nothing else runs then that could be harmed."""
    with _handled(signal.default_int_handler):
        yield


@contextmanager
def _handled(handler: Callable[..., object]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
