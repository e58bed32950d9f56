"""Load on a server, with every request counted to its end.

    with running(Load("192.0.2.10", ca="ca.crt", server_name="llm.example.org", key=key, streams=100)) as tally:
        tally.wait(lambda tally: tally.flowing == 100)
        ...  # something that clients must not notice
    assert not tally.bad, tally.summary().text()

`python -m tests.load --help` does the same from the command line. `throughput` is for requests a second, which
Python cannot send fast enough: it runs wrk.
"""

from tests.load.load import Load, LoadError, Tally, running
from tests.load.tally import Figures, Request, Summary
from tests.load.wrk import Throughput, throughput

__all__ = ["Figures", "Load", "LoadError", "Request", "Summary", "Tally", "Throughput", "running", "throughput"]
