"""`quench keys`: keys of clients are made, shown once, counted, taken back, and brought to the hosts."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from quench import keyring
from quench.plan import load_inventory
from quench.problems import Problem, Refused
from quench.rollout_hosts import BALANCERS, natural, pyinfra_command

DEPLOY = "deploys/keys.py"
# Days: what a key lives if nothing is said, and when its end is near.
_LIFE = 365
_NEAR = 30
# Seconds after which a push says what it may wait for.
_SOON = 15
_WAITING = (
    "this takes longer than usual: a balancer that was reloaded a moment ago is waited for, until the connections that "
    "it has from before, with the former keyring, are closed; all others have the new one"
)
# Hex digits of a hash that people compare.
_SHORT = 8
_HEADER = ("CLIENT", "KEY", "HASH", "EXPIRES", "DAYS", "MODELS", "LIMITS")


@click.group("keys")
def keys() -> None:
    """Keys of clients: made, shown once, counted, taken back, and brought to the hosts.

    \b
    Example: quench keys add team-a
             quench keys push inventories/prod.py

    A keyring is a YAML file that holds hashes, and inventories read it:
        haproxy_clients = keyring.load("inventories/keyring.yaml")
    """


_client = click.argument("client")
_file = click.option(
    "--keyring",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("inventories/keyring.yaml"),
    show_default=True,
    help="YAML file with the clients.",
)
_expires = click.option(
    "--expires", metavar="YEAR-MONTH-DAY", help="First day, in UTC, on which it is refused. Unset: in a year."
)


@keys.command("add")
@_client
@_file
@_expires
@click.option("--models", help="Models that the client may use, with commas between them. Unset: all.")
@click.option("--requests-per-minute", type=int, help="Request rate.")
@click.option("--concurrent", type=int, help="Requests that may run at the same time.")
def add(
    client: str,
    path: Path,
    expires: str | None,
    models: str | None,
    requests_per_minute: int | None,
    concurrent: int | None,
) -> None:
    """Make a key for a new client. It is shown this once; the keyring gets its hash."""
    value, key = _new_key(path, client, expires)
    more = {
        "models": None if models is None else [word.strip() for word in models.split(",") if word.strip()],
        "requests_per_minute": requests_per_minute,
        "concurrent": concurrent,
    }
    with keyring.edit(path) as clients:
        if client in clients:
            remedy = f"give it a second key: quench keys rotate {client}"
            raise Refused([Problem(str(path), client, "is there already", remedy)])
        clients[client] = {"keys": [key], **{name: word for name, word in more.items() if word is not None}}
    _show(client, value, key)


@keys.command("rotate")
@_client
@_file
@_expires
def rotate(client: str, path: Path, expires: str | None) -> None:
    """Make a second key for a client. Both are good until the first is taken back: revoke --key."""
    value, key = _new_key(path, client, expires)
    with keyring.edit(path) as clients:
        present = _keys_of(path, clients, client)
        if len(present) > 1:
            what = f"has two keys already: {_told(present)}"
            remedy = f"take the older one back: quench keys revoke {client} --key {_short(present[0])}"
            raise Refused([Problem(str(path), client, what, remedy)])
        clients[client]["keys"] = [*present, key]
    _show(client, value, key)
    click.echo(f"when it has changed over: quench keys revoke {client} --key {_short(present[0])}", err=True)


@keys.command("revoke")
@_client
@_file
@click.option("--key", "prefix", metavar="HASH", help="Only this key: as much of its hash as `list` shows.")
def revoke(client: str, path: Path, prefix: str | None) -> None:
    """Take a client's keys back, all or one. With the last key the client goes."""
    with keyring.edit(path) as clients:
        present = _keys_of(path, clients, client)
        gone = present if prefix is None else [key for key in present if prefix and key["sha256"].startswith(prefix)]
        if prefix is not None and len(gone) != 1:
            # Not repeated: somebody may have given the key itself.
            what = "no key of it begins so" if not gone else "both keys of it begin so"
            raise Refused([Problem(str(path), client, what, f"it has {_told(present)}")])
        left = [key for key in present if key not in gone]
        if left:
            clients[client]["keys"] = left
        else:
            del clients[client]
        if not clients:
            remedy = f"rotate it and revoke the old key, add another client, or stop the service: {client} stays"
            raise Refused([Problem(str(path), client, "is the last client, and a keyring has at least one", remedy)])
    what = f"{client} has {_told(left)} left" if left else f"{client} is gone"
    click.echo(f"{what}; in force after: quench keys push INVENTORY")


@keys.command("list")
@_file
@click.option("--json", "as_json", is_flag=True, help="Print the clients as JSON.")
def show(path: Path, as_json: bool) -> None:
    """Show who has keys, and for how long. A line with `!` has a key that ends within 30 days."""
    clients = keyring.read(path)
    if as_json:
        click.echo(json.dumps([_row(name, client) for name, client in sorted(clients.items())], indent=2))
        return
    for line in _table(clients):
        click.echo(click.style(line, fg="yellow") if line.startswith("!") else line)


@keys.command("push")
@click.argument("inventory", type=click.Path())
@click.option("--group-data", multiple=True, type=click.Path(exists=True), help="As pyinfra's own. May be repeated.")
@click.option("--exclude", multiple=True, help="Not this group or host pattern. May be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print what became of each host as JSON.")
def push(inventory: str, group_data: tuple[str, ...], exclude: tuple[str, ...], as_json: bool) -> None:
    """Bring the keyring to all hosts that check keys, within seconds, and nothing else.

    \b
    Example: quench keys push inventories/prod.py
    The same as pyinfra inventories/prod.py deploys/keys.py, for these hosts.
    Ends with 1 if a host does not have it.
    """
    began = time.monotonic()
    try:
        hosts, reasons = _push(inventory, group_data, exclude)
    except Refused as refused:
        if not as_json:
            raise
        hosts, reasons = {}, [str(problem) for problem in refused.problems]
    seconds = round(time.monotonic() - began, 1)
    failed = bool(reasons)
    if as_json:
        click.echo(json.dumps({"ok": not failed, "seconds": seconds, "hosts": hosts, "reasons": reasons}, indent=2))
    else:
        for host, state in hosts.items():
            click.secho(f"{host}  {state}", fg="red" if state == "failed" else None)
        for reason in reasons:
            click.secho(reason, fg="red", err=True)
        if not failed:
            click.secho(f"{len(hosts)} host{'s' if len(hosts) != 1 else ''} up to date, {seconds} s", fg="green")
    raise SystemExit(1 if failed else 0)


def holders(inventory: str, group_data: tuple[str, ...] = ()) -> list[str]:
    """Hosts of an inventory that check keys.

    Raises:
        Refused: if there is none.
    """
    found = [
        host.name
        for host in load_inventory(inventory, group_data=group_data)
        if BALANCERS in host.groups or host.data.get("nginx_clients")
    ]
    if not found:
        what = "no host checks keys: none is in the group balancers, and none has nginx_clients"
        raise Refused([Problem(inventory, "hosts", what, "correct the inventory")])
    return sorted(found, key=natural)


def _push(inventory: str, group_data: tuple[str, ...], exclude: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """What became of each host, and what went wrong."""
    names = holders(inventory, group_data)
    words = [*pyinfra_command(inventory, [DEPLOY], group_data), "-y", "--json"]
    words += [word for name in names for word in ("--limit", name)]
    words += [word for pattern in exclude for word in ("--exclude", pattern)]
    # A host that fails is no reason to leave a key in force on another.
    words += ["--fail-percent", "100"]
    code, out, err = _patiently(words)
    try:
        results = json.loads(out)["results"]
    except (ValueError, KeyError):
        return {}, _reasons(err)
    hosts: dict[str, str] = {}
    for operation in results["operations"]:
        for state, told in (("no_change", "unchanged"), ("success", "changed"), ("error", "failed")):
            for name in operation[state]:
                if hosts.get(name, "unchanged") == "unchanged" or told == "failed":
                    hosts[name] = told
    in_order = dict(sorted(hosts.items(), key=lambda item: natural(item[0])))
    return in_order, _reasons(err) if code else []


def _patiently(words: list[str]) -> tuple[int, str, str]:
    """Exit code, output and complaints of a command. If it takes long, people are told what it may wait for."""
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            out, err = process.communicate(timeout=_SOON)
        except subprocess.TimeoutExpired:
            click.echo(_WAITING, err=True)
            out, err = process.communicate()
    return process.returncode, out, err


def _reasons(text: str) -> list[str]:
    """The lines that say what is wrong; all, if none does."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
    problem = re.compile(r"\S+: \S+: .*; |\[\S+\] *(?!Connected|Success|No changes|Skipped|Ready)\S")
    return [line for line in lines if problem.match(line)] or lines or ["pyinfra gives no reason"]


def _new_key(path: Path, client: str, expires: str | None) -> tuple[str, dict[str, str]]:
    day = expires or (_today() + timedelta(days=_LIFE)).isoformat()
    value = f"sk-{secrets.token_urlsafe(32)}"
    key = {"sha256": hashlib.sha256(value.encode()).hexdigest(), "expires": day}
    keyring.validated(path, {client: {"keys": [key]}})
    if date.fromisoformat(day) <= _today():
        raise Refused([Problem(str(path), f"{client}.expires", f"{day} is not in the future", "give it a later day")])
    return value, key


def _show(client: str, value: str, key: Mapping[str, str]) -> None:
    # On standard output alone, so that it can go straight into a vault.
    click.echo(value)
    click.echo(f"the key of {client}, until {key['expires']}, shown this once: its hash is {_short(key)}", err=True)
    click.echo("in force after: quench keys push INVENTORY", err=True)


def _keys_of(path: Path, clients: Mapping[str, Any], client: str) -> list[dict[str, str]]:
    if client not in clients:
        there = f"clients: {', '.join(sorted(clients))}" if clients else "make it: quench keys add"
        raise Refused([Problem(str(path), client, "no such client", there)])
    found: list[dict[str, str]] = clients[client]["keys"]
    return found


def _short(key: Mapping[str, str]) -> str:
    return key["sha256"][:_SHORT]


def _told(some: list[dict[str, str]]) -> str:
    return " and ".join(f"{_short(key)} (until {key['expires']})" for key in some)


def _row(name: str, client: keyring.Client) -> dict[str, Any]:
    return {
        "client": name,
        "keys": [{"hash": key.sha256[:_SHORT], "expires": key.expires, "days_left": _days(key)} for key in client.keys],
        **client.model_dump(exclude={"keys"}),
    }


def _table(clients: Mapping[str, keyring.Client]) -> Iterator[str]:
    cells, marks = [_HEADER], [" "]
    for name, client in sorted(clients.items()):
        models = "all" if client.models is None else ", ".join(client.models) or "none"
        limits = f"{client.requests_per_minute} a minute, {client.concurrent} at once"
        for number, key in enumerate(client.keys, 1):
            days = _days(key)
            left = f"{days}" if days > 0 else "over"
            which = f"{number} of {len(client.keys)}"
            cells.append((name, which, key.sha256[:_SHORT], key.expires, left, models, limits))
            marks.append("!" if days < _NEAR else " ")
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADER))]
    for mark, line in zip(marks, cells, strict=True):
        yield f"{mark} {'  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))}".rstrip()


def _days(key: keyring.Key) -> int:
    return (date.fromisoformat(key.expires) - _today()).days


def _today() -> date:
    return datetime.now(UTC).date()
