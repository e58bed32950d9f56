"""What may pass between whom: roles declare it, the firewall lets it through, auditors read it."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from quench.contracts import Flow

# Whatever is in no zone.
WORLD = "world"
_PORTS = {"http": 80, "https": 443}


def download(role: str, url: str | None, zones: Sequence[str], why: str) -> Flow:
    """The flow to where something is fetched from.

    Args:
        url: a mirror of the house, in one of the zones; None: the publisher's own server, which is in none.
    """
    if url is None:
        return Flow(role, "out", (WORLD,), _PORTS["https"], why)
    parts = urlsplit(url)
    return Flow(role, "out", tuple(zones), parts.port or _PORTS[parts.scheme], why)
