"""How the lab talks: to people on standard error, a line for each step, with the time it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from pyinfra.api.exceptions import PyinfraError


class LabError(PyinfraError):
    """The lab cannot do what it was asked for; the text says why and what helps."""


def say(text: str) -> None:
    """A line for people."""
    click.echo(f"    {text}", err=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Announce a step, and say how long it took once it is over."""
    start = time.monotonic()
    live = sys.stderr.isatty()
    if live:
        click.echo(f"    {what} ...", err=True, nl=False)
    try:
        yield
    except BaseException:
        click.echo(f"{'' if live else f'    {what} ...'} {click.style('failed', fg='red')}", err=True)
        raise
    took = f"{time.monotonic() - start:.1f} s"
    click.echo(f"{'' if live else f'    {what} ...'} {click.style('done', fg='green')} {took}", err=True)
