"""References to secrets. Inventories hold references; values are read at the last moment."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

SCHEMES = ("env", "file", "command")


class SecretUnavailable(Exception):
    """The reference is well formed, but there is no value behind it. The text names no value."""


@dataclass(frozen=True)
class SecretRef:
    """`env:NAME`, `file:PATH` or `command:PROGRAM ARGUMENTS`.

    The text of a reference, `<secret env:NAME>`, stands in rendered files where the value will be.
    """

    reference: str

    def __str__(self) -> str:
        return f"<secret {self.reference}>"

    def resolve(self) -> str:
        """The secret's value, without its trailing newline.

        Raises:
            SecretUnavailable: with what is wrong, never with any part of a value.
        """
        return _resolve(self.reference)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(cls._parse)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": rf"^({'|'.join(SCHEMES)}):.+"}

    @classmethod
    def _parse(cls, value: object) -> SecretRef:
        if isinstance(value, SecretRef):
            return value
        scheme, _, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
        if scheme not in SCHEMES or not rest:
            # The value may be the secret itself, put here by mistake: it is not repeated.
            raise PydanticCustomError(
                "secret_reference",
                "must be a reference to a secret, not the secret: env:NAME, file:PATH or command:PROGRAM",
            )
        return cls(f"{scheme}:{rest}")


# Cached so that `command:` runs once, and so that the value which was checked is the value used.
@cache
def _resolve(reference: str) -> str:
    scheme, _, rest = reference.partition(":")
    if scheme == "env":
        value = os.environ.get(rest)
        if value is None:
            raise SecretUnavailable(f"environment variable {rest} is not set")
    elif scheme == "file":
        try:
            value = Path(rest).expanduser().read_text()
        except OSError as error:
            raise SecretUnavailable(f"{rest} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise SecretUnavailable(f"{rest} cannot be read: it is not text") from None
        except RuntimeError:
            raise SecretUnavailable(f"{rest} cannot be read: there is no such user") from None
    else:
        done = subprocess.run(["sh", "-c", rest], capture_output=True, check=False)
        if done.returncode != 0:
            raise SecretUnavailable(f"command ended with exit code {done.returncode}: {rest}")
        try:
            value = done.stdout.decode()
        except UnicodeDecodeError:
            raise SecretUnavailable(f"command printed something that is not text: {rest}") from None
    value = value.rstrip("\n")
    if not value:
        raise SecretUnavailable(f"{reference} is empty")
    return value
