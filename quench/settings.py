"""Typed settings. A role's model is the only place for its defaults, types, docs and examples."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from types import UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from pyinfra.api.arguments import AllArguments
from pyinfra.connectors import ssh

from quench.problems import Problem, Refused
from quench.secrets import SecretRef

Platform = Literal["debian-12", "debian-13", "ubuntu-22.04", "ubuntu-24.04", "rhel-9", "rhel-10"]

EVERY_PLATFORM: tuple[Platform, ...] = get_args(Platform)

# Keys that belong to pyinfra itself: connection data, and global arguments such as `_sudo`.
_PYINFRA_KEYS = {*ssh.ConnectorData.__annotations__, *(name for name in AllArguments.__annotations__ if name[0] == "_")}


class Model(BaseModel):
    """A part of a role's settings, such as one model of `vllm_models`."""

    # Strict, so that "8000" is not quietly taken for 8000; frozen, so that rendering stays pure.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class RoleSettings(Model):
    """Settings of one role, read from the flat inventory keys `<prefix>_<field>`."""

    prefix: ClassVar[str]
    # Where the role runs. A role for more platforms says so.
    platforms: ClassVar[tuple[Platform, ...]] = ("debian-12", "debian-13", "ubuntu-24.04")

    platform: Platform = Field(
        description="Operating system of the host. Rendering relies on it; the run verifies it.",
        examples=["debian-12"],
    )

    @classmethod
    def load(cls, host: str, data: Mapping[str, Any]) -> Self:
        """Settings from the merged data of a host.

        Raises:
            Refused: with every error of this role on this host.
        """
        start = f"{cls.prefix}_"
        # `dcgm_exporter_port` is dcgm_exporter's, and not dcgm's.
        others = tuple(f"{prefix}_" for prefix in known_roles() if prefix.startswith(start))
        mine = {key: value for key, value in data.items() if key.startswith(start) and not key.startswith(others)}
        values = {key.removeprefix(start): value for key, value in mine.items()}
        # The platform is the host's and has no prefix; with one, it is a key that nobody reads.
        misplaced = values.pop("platform", None) is not None
        if "platform" in data:
            values["platform"] = data["platform"]
        problems = [Problem(host, f"{start}platform", "unknown key", "did you mean platform?")] * misplaced
        if data.get("platform") in get_args(Platform) and data["platform"] not in cls.platforms:
            what = f"the role {cls.prefix} does not run on {data['platform']!r} yet"
            problems.append(Problem(host, "platform", what, f"it runs on {', '.join(cls.platforms)}"))
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            problems += [_problem(cls, host, details) for details in error.errors()]
            raise Refused(problems) from None
        if problems:
            raise Refused(problems)
        return settings

    def problems(self, host: str) -> Iterator[Problem]:
        """What the model cannot say of itself, such as a certificate that has expired. Reads the
        controller's files and clock; asks no host."""
        yield from ()

    def secrets(self) -> Iterator[tuple[str, SecretRef]]:
        """Every reference to a secret in these settings, with its inventory key."""
        return _secrets(f"{self.prefix}_", self)


def check_names(names: Iterable[str], what: str) -> None:
    """Raises ValueError unless each name can stand in a unit's name, a path and a log line."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(f"{name!r} cannot name {what}; use letters, digits, '.', '_' and '-'")


def known_roles() -> dict[str, type[RoleSettings]]:
    """The settings of every role in `roles/`, by prefix."""
    roles = importlib.import_module("roles")
    for module in pkgutil.iter_modules(roles.__path__):
        importlib.import_module(f"roles.{module.name}.settings")
    return {model.prefix: model for model in RoleSettings.__subclasses__()}


def unclaimed(host: str, data: Mapping[str, Any]) -> Iterator[Problem]:
    """A problem for each key that no role reads, so that `ngnix_port` is not silently ignored."""
    roles = known_roles()
    for key in data:
        if key == "platform" or key in _PYINFRA_KEYS or key.startswith("site_"):
            continue
        if not any(key.startswith(f"{prefix}_") for prefix in roles):
            names = ((prefix, name) for prefix, role in roles.items() for name in role.model_fields)
            valid = ["platform", *_PYINFRA_KEYS, *(f"{prefix}_{name}" for prefix, name in names if name != "platform")]
            yield Problem(host, key, "no role reads this key", _nearest(key, valid))


def _nearest(word: str, valid: list[str], prefix: str = "") -> str:
    match = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    if match:
        return f"did you mean {prefix}{match[0]}?"
    if len(valid) < 20:
        return f"valid keys: {', '.join(prefix + name for name in sorted(valid))}"
    return "remove it, or name your own keys site_*"


def _problem(model: type[RoleSettings], host: str, error: ErrorDetails) -> Problem:
    location = [str(part) for part in error["loc"]]
    path = ".".join(location)
    key = path if path == "platform" else f"{model.prefix}_{path}" if path else f"{model.prefix}_*"
    kind = error["type"]
    if kind == "extra_forbidden":
        parent = _model_at(model, location[:-1])
        names = [name for name in parent.model_fields if name != "platform"]
        if parent is model:
            # Compared without the prefix, which would make anything look alike.
            return Problem(host, key, "unknown key", _nearest(location[-1], names, prefix=f"{model.prefix}_"))
        return Problem(host, key, "unknown key", _nearest(location[-1], names))
    if kind == "missing":
        return Problem(host, key, "is not set", "set it in the inventory's group_data or on the host")
    if kind == "value_error":
        what, _, remedy = str(error["ctx"]["error"]).partition("; ")
        return Problem(host, key, what, remedy or "see docs/reference")
    if kind == "secret_reference":
        return Problem(host, key, error["msg"], "put the value in the environment or in a file")
    message = error["msg"][0].lower() + error["msg"][1:]
    shown = "" if _holds_keys(model, location) else f"{_shown(error['input'])}: "
    return Problem(host, key, f"{shown}{message}", _expected(model, location))


def _holds_keys(model: type[BaseModel], location: list[str]) -> bool:
    """Whether a field on the way is marked `repr=False`: a secret may stand there by mistake."""
    fields = (_model_at(model, location[:depth]).model_fields.get(part) for depth, part in enumerate(location))
    return any(field is not None and not field.repr for field in fields)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _expected(model: type[BaseModel], location: list[str]) -> str:
    parent = _model_at(model, location[:-1])
    field = parent.model_fields.get(location[-1]) if location else None
    if field is not None and field.examples:
        return f"for example {field.examples[0]!r}"
    return f"see docs/reference/{getattr(model, 'prefix', '')}.md"


def _model_at(model: type[BaseModel], location: list[str]) -> type[BaseModel]:
    """The model that holds the field at a location; names of dict keys and list items are skipped."""
    for part in location:
        field = model.model_fields.get(part)
        if field is not None:
            model = next(models_in(field.annotation), model)
    return model


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a field's type speaks of, such as those of a dict's values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    if get_origin(annotation) in (Union, UnionType, list, dict):
        for part in get_args(annotation):
            yield from models_in(part)


def _secrets(key: str, value: object) -> Iterator[tuple[str, SecretRef]]:
    if isinstance(value, SecretRef):
        yield key.rstrip("."), value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            separator = "" if key.endswith("_") else "."
            yield from _secrets(f"{key}{separator}{name}", getattr(value, name))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _secrets(f"{key}.{name}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _secrets(f"{key}.{index}", item)
