"""The keyring: who may use the models. Balancers and nodes without one read the same."""

from __future__ import annotations

import calendar
from collections.abc import Mapping
from datetime import date

from pydantic import Field, field_validator

from quench.settings import Model, check_names


class Key(Model):
    """An API key of a client, known only by its hash. `quench key` makes one."""

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
                    f"clients {owners[key.sha256]} and {name} have the same key; make a new one: quench key"
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
