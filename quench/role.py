"""What makes a function a role."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from pyinfra import context
from pyinfra.api import deploy

from quench.contracts import Engine
from quench.plan import recording
from quench.problems import Problem, Refused
from quench.secrets import SecretUnavailable
from quench.settings import RoleSettings

S = TypeVar("S", bound=RoleSettings)
P = ParamSpec("P")
R = TypeVar("R")


def role(model: type[S], *, partial: bool = False) -> Callable[[Callable[Concatenate[S, P], R]], Callable[P, R]]:
    """Give a deploy function its settings, read from the current host's data.

    On a real host a problem refuses the run. While a plan is made, problems are recorded, and the
    role's body is left out, as are the roles that need its result, so that all problems of all roles
    come up together.

    Args:
        partial: the function brings a part of the role, without secrets and certificates. So whoever runs it needs
            none of them, and one that is missing or has expired is not in its way.
    """

    def decorate(function: Callable[Concatenate[S, P], R]) -> Callable[P, R]:
        # pyinfra's own type speaks of operations; what it gives back is the function, with a name around it.
        run = cast("Callable[Concatenate[S, P], R]", deploy(model.prefix)(function))

        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> Any:
            plan = recording()
            host = context.host.name
            try:
                settings = model.load(host, context.host.data.dict())
                problems = [] if partial else [*_missing_secrets(host, settings), *settings.problems(host)]
                if problems:
                    raise Refused(problems)
                if plan is None:
                    return run(settings, *args, **kwargs)
                plan.platform = settings.platform
                if settings not in plan.settings:  # a role may have parts
                    plan.settings.append(settings)
                # The first problem of another role is the cause; what follows from it is noise.
                told = None if _incomplete(args) else run(settings, *args, **kwargs)
                plan.engines.extend(
                    item for item in (told if isinstance(told, list) else ()) if isinstance(item, Engine)
                )
                return told
            except Refused as refused:
                if plan is None:
                    raise
                plan.problems.extend(refused.problems)
                return None

        return wrapped

    return decorate


def _incomplete(args: tuple[object, ...]) -> bool:
    return any(arg is None for arg in args)


def _missing_secrets(host: str, settings: RoleSettings) -> Any:
    for key, secret in settings.secrets():
        try:
            secret.resolve()
        except SecretUnavailable as error:
            yield Problem(host, key, str(error), "set it where the run starts, or change the reference")
