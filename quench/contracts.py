"""What roles tell each other. A role knows these types and never another role."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Route:
    """A method and an exact path that clients may call."""

    method: str
    path: str


@dataclass(frozen=True)
class Engine:
    """A model that is served on this host's loopback address."""

    model: str
    port: int
    routes: tuple[Route, ...]


@dataclass(frozen=True)
class LogFiles:
    """Log files of a service, and how it is told to open new ones."""

    service: str
    paths: tuple[str, ...]
    owner: str
    reopen: str
