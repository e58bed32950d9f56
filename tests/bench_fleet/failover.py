"""How long nobody answers at the shared address after the balancer that had it has lost its power."""

from __future__ import annotations

import http.client
import itertools
import ssl
import threading
import time

from quench.lab import fleet as lab_fleet
from tests.bench_fleet.fleet import KEYS, Fleet, wait

# A call each 50 ms, each by a connection of its own. One without an answer is given up after half a second.
_EACH, _PATIENCE = 0.05, 0.5


def failover(fleet: Fleet) -> float:
    """Seconds from the last call that was answered before to the first that is answered after."""
    holder = fleet.holder()
    answered: list[float] = []
    ended = threading.Event()
    context = ssl.create_default_context(cafile=holder.ca)

    def call() -> None:
        began = time.monotonic()
        connection = _Named(fleet, context)
        try:
            connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {KEYS[0]}"})
            if connection.getresponse().status == 200:
                answered.append(began)
        except OSError:
            pass
        finally:
            connection.close()

    def work() -> None:
        # Each in a thread: a call that hangs must not keep the next one waiting.
        calls = []
        while not ended.wait(_EACH):
            calls.append(threading.Thread(target=call))
            calls[-1].start()
        for one in calls:
            one.join()

    caller = threading.Thread(target=work)
    caller.start()
    try:
        wait(lambda: len(answered) > 20, "the shared address does not answer", 20)
        off = time.monotonic()
        lab_fleet.switch_off(holder.lab, holder.name)
        wait(lambda: bool(answered) and max(answered) > off + 0.5, "no balancer has taken the address over", 60)
        time.sleep(1)
    finally:
        ended.set()
        caller.join()
        lab_fleet.switch_on(holder.lab, holder.name)
    ordered = sorted(answered)
    return max(after - before for before, after in itertools.pairwise(ordered))


class _Named(http.client.HTTPSConnection):
    """A connection to the shared address, whose certificate must have the name that clients use."""

    def __init__(self, fleet: Fleet, context: ssl.SSLContext) -> None:
        super().__init__(fleet.address, 443, timeout=_PATIENCE, context=context)
        self._name, self._tls = fleet.name, context

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name)
