"""What a host is asked: before the run, and on the way."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable

from pyinfra import context
from pyinfra.api import operation

from quench import facts
from quench.operations.commands import Commands, change, failure
from quench.plan import Question, recording
from quench.problems import Problem


def require_path(path: str, *, key: str, remedy: str) -> None:
    """Refuse the run, before it changes anything, unless a path is on the host."""
    plan = recording()
    if plan is not None:
        problem = Problem(context.host.name, key, f"{path} is not on the host", remedy)
        plan.questions.append(
            Question(f"test -e {shlex.quote(path)} || echo missing", lambda answer: [problem] * len(answer))
        )


def ask(command: str, problems: Callable[[list[str]], Iterable[Problem]]) -> None:
    """Ask the host before the run changes anything, and refuse the run if the answer says so.

    Args:
        command: shell, run as root. It changes nothing.
        problems: what the answer, line by line, says against the run.
    """
    plan = recording()
    if plan is not None:
        plan.questions.append(Question(command, problems))


def ensure(name: str, question: str, command: str) -> None:
    """Run a command as root as long as a question has an answer.

    Args:
        name: imperative sentence, the operation's name.
        question: shell that prints what is amiss, and nothing if all is well. It changes nothing.
        command: shell that mends it.
    """
    _ensure(name=name, question=question, command=command)


@operation()
def _ensure(question: str, command: str) -> Commands:
    if context.host.get_fact(facts.Lines, command=question):
        yield change(command)


def confirm(name: str, question: str) -> None:
    """End the run on this host, with the answer, if a question has one.

    Args:
        name: imperative sentence, the operation's name.
        question: shell that prints `KEY: WHAT; REMEDY` for each thing that is amiss. It changes nothing.
    """
    _confirm(name=name, question=question)


@operation()
def _confirm(question: str) -> Commands:
    amiss = context.host.get_fact(facts.Lines, command=question)
    if amiss:
        yield failure(amiss)
