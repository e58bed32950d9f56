"""Reference pages and a JSON Schema of all settings, from the models: the only place where they are written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from quench.settings import RoleSettings, known_roles, models_in


def write_reference(folder: Path) -> list[Path]:
    """Write `<role>.md` for each role and `schema.json` for editors. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for prefix, role in sorted(known_roles().items()):
        path = folder / f"{prefix}.md"
        path.write_text(page(role))
        written.append(path)
    schema = folder / "schema.json"
    schema.write_text(json.dumps(inventory_schema(), indent=2) + "\n")
    return [*written, schema]


def page(role: type[RoleSettings]) -> str:
    """The reference page of a role, in Markdown."""
    lines = [f"# {role.prefix}", "", _doc(role), "", "Generated from the role's settings: `quench reference`.", ""]
    lines += [*_table(role, f"{role.prefix}_")]
    for model in _nested(role):
        lines += ["", f"## {model.__name__}", "", _doc(model), "", *_table(model, "")]
    return "\n".join(lines) + "\n"


def inventory_schema() -> dict[str, Any]:
    """A JSON Schema (2020-12) of a host's flat data: all keys of all roles."""
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    for prefix, role in sorted(known_roles().items()):
        schema = role.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= schema.get("$defs", {})
        for name, field in schema["properties"].items():
            properties[name if name == "platform" else f"{prefix}_{name}"] = field
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Data of a host in a Quench inventory",
        "type": "object",
        "properties": properties,
        "$defs": definitions,
    }


def _table(model: type[BaseModel], prefix: str) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for name, field in model.model_fields.items():
        key = name if name == "platform" else f"{prefix}{name}"
        default = "required" if field.default is PydanticUndefined else f"`{field.default!r}`"
        example = f" For example `{field.examples[0]!r}`." if field.examples else ""
        yield f"| `{key}` | {_type(field.annotation)} | {default} | {field.description}{example} |".replace("\n", " ")


def _type(annotation: Any) -> str:
    text = (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
    text = re.sub(r"Annotated\[(\w+), .*?\]\]?\)?\]", r"\1]", text)
    text = re.sub(r"[a-z_]+\.(?=[A-Za-z])", "", text)
    return f"`{text}`".replace("|", "\\|")


def _nested(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for field in model.model_fields.values():
        for inner in models_in(field.annotation):
            yield inner
            yield from _nested(inner)


def _doc(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())
