"""What a host is told to do: commands and shell scripts, one at a time on each host."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Iterable
from functools import cache
from pathlib import Path

from pyinfra import context
from pyinfra.api import StringCommand

Commands = Generator[StringCommand, None, None]

REMOTE = Path(__file__).parents[1] / "remote"

# Held by each command that changes a host. What a killed run left running comes to its end first, be it the
# download of a model.
_LOCK = "flock --timeout 3600 --conflict-exit-code 75 /run/quench.lock"
_LOCKED = (
    "{ code=$?; [ $code != 75 ] || echo 'quench: another run has worked on this host for an hour; "
    "it holds /run/quench.lock' >&2; exit $code; }"
)


def change(command: str) -> StringCommand:
    """A command that changes the host, as root, when no other one does."""
    return StringCommand(f"{_LOCK} sh -c {shlex.quote(command)} || {_LOCKED}")


def failure(lines: Iterable[str]) -> StringCommand:
    """A command that ends the run on the current host with some lines for people."""
    words = " ".join(shlex.quote(f"{context.host.name}: {line}") for line in lines)
    return StringCommand(f"printf '%s\\n' {words} >&2; exit 1")


def shell_script(path: Path, *arguments: str) -> str:
    """A command that runs a shell script of the checkout on the host, comments left out."""
    words = " ".join(shlex.quote(argument) for argument in arguments)
    return f"sh -c {shlex.quote(stripped(path))} {shlex.quote(path.name)} {words}".rstrip()


def remote_script(name: str, *arguments: str) -> str:
    """A command that runs a script of quench/remote/ on the host, as root, when no other command changes it."""
    return f"{_LOCK} {shell_script(REMOTE / name, *arguments)} || {_LOCKED}"


def script(name: str, *arguments: str, stdin: str | None = None) -> StringCommand:
    """The same as an operation's command, with what goes to its standard input: secrets, and what is large."""
    command = remote_script(name, *arguments)
    return StringCommand(command) if stdin is None else StringCommand(command, _stdin=stdin)


@cache
def stripped(path: Path) -> str:
    """A shell script of the checkout without its comments."""
    # Comments stay in the file: they need not travel, and `-vv` stays readable.
    return "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
