"""The keyring: who may use the models. Balancers and nodes without one read the same."""

from __future__ import annotations

import calendar
import fcntl
import os
import stat
import tempfile
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError, field_validator
from pydantic_core import ErrorDetails
from typing_extensions import override

from quench.files import CHECKOUT
from quench.problems import Problem, Refused
from quench.settings import Model, check_names


class Key(Model):
    """An API key of a client, known only by its hash. `quench keys add` makes one."""

    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key, in hex. The key itself stands nowhere."
    )
    expires: str = Field(
        pattern=r"^\d{4}-\d{2}-\d{2}$",
        description="First day, in UTC, on which the key is refused, as YEAR-MONTH-DAY.",
        examples=["2027-06-30"],
    )

    @field_validator("expires")
    @classmethod
    def _is_a_day(cls, value: str) -> str:
        try:
            date.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{value} is no day; write it as YEAR-MONTH-DAY") from None
        return value


class Client(Model):
    """Somebody who may use the models."""

    keys: list[Key] = Field(
        min_length=1, max_length=2, description="One live key, or two while the client changes over."
    )
    models: list[str] | None = Field(
        default=None, description="Models that the client may use. Unset: all of this host."
    )
    requests_per_minute: int = Field(default=60, ge=1, le=60000, description="Request rate.")
    burst: int = Field(default=20, ge=0, description="Requests that may come at once beyond the rate.")
    concurrent: int = Field(default=8, ge=1, le=10000, description="Requests that may run at the same time.")


def checked(clients: dict[str, Client]) -> dict[str, Client]:
    """The clients, if their names can stand in logs and no two have the same key. Raises ValueError."""
    owners: dict[str, str] = {}
    check_names(clients, "a client")
    for name, client in clients.items():
        for key in client.keys:
            if key.sha256 in owners:
                raise ValueError(
                    f"clients {owners[key.sha256]} and {name} have the same key; make a new one: quench keys rotate"
                )
            owners[key.sha256] = name
    return clients


def expires(key: Key) -> int:
    """When a key ends, in seconds since 1970: programs compare numbers."""
    return calendar.timegm(date.fromisoformat(key.expires).timetuple())


def unknown_models(clients: Mapping[str, Client], served: set[str]) -> list[tuple[str, str]]:
    """Client and model, wherever a client is allowed a model that nobody serves."""
    allowed = [(name, model) for name, client in sorted(clients.items()) for model in client.models or []]
    return [(name, model) for name, model in allowed if model not in served]


def load(path: str | Path) -> dict[str, dict[str, Any]]:
    """The clients of a YAML file, for an inventory: `haproxy_clients = keyring.load("inventories/keyring.yaml")`.

    Args:
        path: from the checkout's top folder, in which pyinfra runs.

    Raises:
        Refused: with all that is wrong in the file.
    """
    return _plain(read(CHECKOUT / path))


def read(path: Path) -> dict[str, Client]:
    """The clients of a YAML file, by name.

    Raises:
        Refused: with all that is wrong in it. No value is repeated: it might be a key.
    """
    found = _parsed(path)
    if not found:
        raise Refused([Problem(str(path), "keyring", "has no clients", "add one: quench keys add CLIENT")])
    return validated(path, found)


def _parsed(path: Path) -> dict[Any, Any]:
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        remedy = "make it with `quench keys add`, or correct the path"
        raise Refused([Problem(str(path), "keyring", (error.strerror or str(error)).lower(), remedy)]) from None
    except yaml.YAMLError as error:
        mark, said = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"line {mark.line + 1}" if mark else "the file"
        raise Refused([Problem(str(path), where, said or "is no YAML", _SEE)]) from None
    except UnicodeDecodeError:
        raise Refused([Problem(str(path), "the file", "is no text in UTF-8", _SEE)]) from None
    if found is not None and not isinstance(found, dict):
        raise Refused([Problem(str(path), "the file", "is no mapping of clients", _SEE)])
    return found or {}


def validated(path: Path, clients: Mapping[Any, Any]) -> dict[str, Client]:
    """Clients by name, as the file at this path has them or shall have them.

    Raises:
        Refused: with all that is wrong with them.
    """
    try:
        return checked(TypeAdapter(dict[str, Client]).validate_python(dict(clients)))
    except ValidationError as error:
        raise Refused([_problem(path, details) for details in error.errors(include_input=False)]) from None
    except ValueError as error:
        what, _, remedy = str(error).partition("; ")
        raise Refused([Problem(str(path), "keyring", what, remedy)]) from None


@contextmanager
def edit(path: Path) -> Iterator[dict[str, Any]]:
    """The clients of a YAML file, as plain data that may be changed. Written at the end, whole or not at all.

    Comments at the top of the file stay. A file that is not there is an empty keyring.

    Raises:
        Refused: for a file that is wrong, before or after; and if it cannot be written.
    """
    path = path.resolve()  # a link stays one
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        what = f"{path.parent}: {(error.strerror or str(error)).lower()}"
        raise Refused([Problem(str(path), "keyring", what, "correct the path")]) from None
    try:
        # Two who work on the same file wait for each other.
        fcntl.flock(folder, fcntl.LOCK_EX)
        found = _parsed(path) if path.exists() else {}
        clients = _plain(validated(path, found))
        yield clients
        validated(path, clients)
        try:
            _write(path, clients)
        except OSError as error:
            what = f"cannot be written: {error.strerror or error}"
            raise Refused([Problem(str(path), "keyring", what, "see who may write there")]) from None
    finally:
        # gevent, which pyinfra brings, may close it only later.
        fcntl.flock(folder, fcntl.LOCK_UN)
        os.close(folder)


_SEE = "see docs/guides/keys.md"
_HEADER = """\
# The keyring: clients, and the hashes of their keys. `quench keys` writes this file; comments stay here at the top.
"""


class _Loader(yaml.SafeLoader):
    """Days stay text, and a name that stands there twice is an error: YAML would drop the first."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - so that mypy takes it for what PyYAML has there
        start: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = set[str]()
        for key, _ in node.value:
            name = str(key.value)
            if name in names:
                raise yaml.constructor.ConstructorError(None, None, f"{name} stands there twice", key.start_mark)
            names.add(name)
        return super().construct_mapping(node, deep=deep)


def _problem(path: Path, error: ErrorDetails) -> Problem:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "missing":
        return Problem(str(path), key, "is not set", _SEE)
    if error["type"] == "extra_forbidden":
        model = Key if "keys" in location[:-1] else Client
        return Problem(str(path), key, "unknown key", f"valid keys: {', '.join(sorted(model.model_fields))}")
    if error["type"] == "value_error":
        what, _, remedy = str(error["ctx"]["error"]).partition("; ")
        return Problem(str(path), key, what, remedy or _SEE)
    return Problem(str(path), key, error["msg"][0].lower() + error["msg"][1:], _SEE)


def _plain(clients: Mapping[str, Client]) -> dict[str, dict[str, Any]]:
    return {name: client.model_dump(exclude_unset=True) for name, client in clients.items()}


def _write(path: Path, clients: Mapping[str, Any]) -> None:
    before = path.stat() if path.exists() else None
    text = _top(path.read_text(encoding="utf-8")) if before else _HEADER
    body = yaml.safe_dump({name: clients[name] for name in sorted(clients)}, sort_keys=False, width=120)
    number, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text + body)
            file.flush()
            os.fsync(number)
            if before:
                os.fchmod(number, stat.S_IMODE(before.st_mode))
                with suppress(PermissionError):  # the owner may be kept by root alone
                    os.fchown(number, before.st_uid, before.st_gid)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


def _top(text: str) -> str:
    lines = text.splitlines(keepends=True)
    end = next((number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    return "".join(lines[:end])
