"""SIMULATED: what the lab's stand-ins for NVIDIA's programs know about their host. Runs there, on its own."""

from __future__ import annotations

import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

HARDWARE = Path("/usr/lib/quench-lab/gpus.json")
FABRIC_COMPLETED = Path("/run/quench-lab/fabric-completed")
MIG_MODE = Path("/var/lib/quench-lab/mig.json")
# On tmpfs: the geometry is gone after a boot.
MIG_GEOMETRY = Path("/run/quench-lab/mig.json")


def loaded_version() -> str | None:
    """Version of the loaded kernel module, if there is one."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except FileNotFoundError:
        return None


def gpus() -> list[dict[str, Any]]:
    """The GPUs that the loaded module drives."""
    found: list[dict[str, Any]] = json.loads(HARDWARE.read_text())["gpus"]
    return found


def can_open(path: str) -> bool:
    """Whether a device file opens, which a sandbox can forbid."""
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError:
        return False
    return True


def persistent() -> bool:
    """Whether the persistence daemon runs."""
    return Path("/run/nvidia-persistenced/nvidia-persistenced.pid").exists()


def device_users() -> list[str]:
    """Programs that hold one of the devices open, and the switch that plays one."""
    users = ["a client of the test"] if os.path.exists("/run/quench-lab/gpu-client") else []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()).startswith("/dev/nvidia"):
                process = link.parent.parent
                name = process.joinpath("cmdline").read_bytes().split(b"\0")[0].decode().rsplit("/", 1)[-1]
                # A script is called by its own name, not by its interpreter's.
                script = name in ("sh", "bash", "python3")
                users.append(process.joinpath("comm").read_text().strip() if script else name)
        except OSError:
            continue
    return sorted(set(users))


def fabric(gpu: dict[str, Any]) -> tuple[str, str]:
    """State and status of the GPU in its fabric."""
    if gpu["fabric"] == "none":
        return "[N/A]", "[N/A]"
    return ("Completed", "Success") if FABRIC_COMPLETED.exists() else ("In Progress", "N/A")


def mig_state(gpu: dict[str, Any]) -> dict[str, Any]:
    """MIG mode and geometry of a GPU."""
    key = str(gpu["index"])
    return {"enabled": _read(MIG_MODE).get(key, False), "devices": _read(MIG_GEOMETRY).get(key, {})}


def mig_mode(gpu: dict[str, Any]) -> str:
    """MIG mode as nvidia-smi has it."""
    if not gpu["mig"]:
        return "[N/A]"
    return "Enabled" if mig_state(gpu)["enabled"] else "Disabled"


def mig_devices(gpu: dict[str, Any]) -> list[tuple[str, str]]:
    """Profile and UUID of each MIG device of a GPU."""
    profiles = [name for name, count in mig_state(gpu)["devices"].items() for _ in range(count)]
    base = uuid.UUID(gpu["uuid"].removeprefix("GPU-"))
    return [(profile, f"MIG-{uuid.uuid5(base, f'{number}')}") for number, profile in enumerate(profiles)]


def write_mig(states: dict[str, dict[str, Any]]) -> None:
    """Keep mode and geometry, each where it lives as long as it should."""
    MIG_MODE.write_text(json.dumps({index: state["enabled"] for index, state in states.items()}))
    MIG_GEOMETRY.write_text(json.dumps({index: state["devices"] for index, state in states.items()}))


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found


def read_yaml(text: str) -> Any:
    """The part of YAML that configuration files here use: mappings, lists, scalars, and flow style as JSON has it.

    A host has no YAML library, and the programs played here bring their own.
    """
    lines = []
    for raw in text.splitlines():
        line = re.sub(r"(^|\s)#.*$", "", raw).rstrip() if "#" in raw else raw.rstrip()
        if line.strip() and line.strip() not in ("---", "..."):
            lines.append((len(line) - len(line.lstrip()), line.lstrip()))
    if not lines:
        return None
    if lines[0][1][0] in "{[":
        return _flow(" ".join(line for _, line in lines))
    value, rest = _block(lines, lines[0][0])
    if rest:
        raise ValueError(f"cannot read this YAML: {rest[0][1]!r}")
    return value


_Lines = list[tuple[int, str]]


def _block(lines: _Lines, indent: int) -> tuple[Any, _Lines]:
    if lines[0][1].startswith("- ") or lines[0][1] == "-":
        items = []
        while lines and lines[0][0] == indent and (lines[0][1].startswith("- ") or lines[0][1] == "-"):
            inner = lines[0][1][1:].lstrip()
            deeper = indent + len(lines[0][1]) - len(inner)
            if not inner:
                item, lines = _block(lines[1:], lines[1][0])
            elif _key(inner):
                item, lines = _block([(deeper, inner), *lines[1:]], deeper)
            else:
                item, lines = _flow(inner), lines[1:]
            items.append(item)
        return items, lines
    found: dict[str, Any] = {}
    while lines and lines[0][0] == indent:
        match = _key(lines[0][1])
        if not match:
            raise ValueError(f"cannot read this YAML: {lines[0][1]!r}")
        key, value = match.group(1).strip("\"'"), match.group(2) or ""
        lines = lines[1:]
        if value:
            found[key] = _flow(value)
        elif lines and (lines[0][0] > indent or (lines[0][0] == indent and lines[0][1].startswith("-"))):
            found[key], lines = _block(lines, lines[0][0])
        else:
            found[key] = None
    return found, lines


def _key(line: str) -> re.Match[str] | None:
    return re.match(r"""("[^"]*"|'[^']*'|[^\s\[{"'][^:]*):(?:\s+(.*)|())$""", line) if line[0] not in "[{" else None


def _flow(text: str) -> Any:
    if text[:1] not in ("[", "{", "'", '"'):
        return _scalar(text)
    value, rest = _flow_value(text)
    if rest.strip():
        raise ValueError(f"cannot read this YAML: {text!r}")
    return value


def _flow_value(text: str) -> tuple[Any, str]:
    """A value at the start of a text in flow style, and the text behind it."""
    if text[0] in "'\"":
        end = text.index(text[0], 1)
        return text[1:end], text[end + 1 :]
    if text[0] not in "[{":
        match = re.match(r"(?:[^,\[\]{}:]|:(?=\S))+", text)
        if not match:
            raise ValueError(f"cannot read this YAML: {text!r}")
        return _scalar(match.group().strip()), text[match.end() :]
    items: list[Any] = []
    found: dict[str, Any] = {}
    rest = text[1:].lstrip()
    while rest and rest[0] not in "]}":
        value, rest = _flow_value(rest)
        if text[0] == "{":
            key = str(value)
            found[key], rest = _flow_value(rest.lstrip().removeprefix(":").lstrip())
        else:
            items.append(value)
        rest = rest.lstrip().removeprefix(",").lstrip()
    return (found if text[0] == "{" else items), rest[1:]


def _scalar(text: str) -> Any:
    if text in ("true", "false", "null", "~"):
        return {"true": True, "false": False}.get(text)
    return int(text) if re.fullmatch(r"-?\d+", text) else text
