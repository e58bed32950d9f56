"""How a rollout asks hosts: over SSH, by pyinfra's own connections, with what the inventory says of them."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator
from pyinfra.api import StringCommand
from pyinfra.api.config import Config
from pyinfra.api.exceptions import NoGroupError
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State

from quench import haproxy
from quench.decommission import CACHES, MODELS, Certificate, Found, Leaving, parse
from quench.facts import STATE_DIRECTORY
from quench.files import CHECKOUT
from quench.operations.commands import remote_script, shell_script
from quench.problems import Problem, Refused
from quench.rollout_fleet import Failure, Kept
from quench.rollout_record import Claim
from quench.settings import Model
from quench.transport import connect_once

BALANCERS = "balancers"
NODES = "inference"

_SOCKET = "/run/haproxy/admin.sock"
_KEEP_STATE = "/usr/local/lib/quench/haproxy-server-state"
_CERTIFICATE = "/etc/haproxy/quench/node.crt"
_AUTHORITY = "/etc/haproxy/quench/nodes-ca.crt"
# Children of the main process beside the one that answers at the socket.
_FORMER = (
    "main=$(systemctl show --property MainPID --value haproxy.service); "
    f"now=$(echo 'show info' | socat -t 5 - {_SOCKET} | sed -n 's/^Pid: //p'); "
    'grep -lx "PPid:.$main" /proc/[0-9]*/status 2>/dev/null | cut -d/ -f3 | grep -cvx "$now"; true'
)
_MARKS = f"{STATE_DIRECTORY}/rollout.drained"
_ASK = Path(__file__).parent / "remote" / "ask_model.sh"

# What a model may be asked, until one of these has an answer: not every model chats.
_REQUESTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 4}),
    ("/v1/completions", {"prompt": "Say yes.", "max_tokens": 4}),
    ("/v1/embeddings", {"input": "yes"}),
)
# Seconds: a connection, a command that answers at once, one that works on files and starts units, an answer of a model.
_KNOCK = 3
_PATIENCE = 30
_WORK = 3600
_ANSWER = 120


class Prompt(Model):
    """A question to which the answer is known."""

    model: str | None = Field(default=None, description="Who is asked. Unset: each model of the node.")
    prompt: str = Field(description="What a user would write.")
    expect: str | None = Field(default=None, description="The whole answer, but for spaces around it.")
    matches: str | None = Field(default=None, description="A regular expression that is found in the answer.")
    max_tokens: int = Field(default=64, ge=1, description="Length of the answer at most.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Prompt:
        if (self.expect is None) == (self.matches is None):
            raise ValueError("give one of expect and matches")
        if self.matches is not None:
            try:
                re.compile(self.matches)
            except re.error as error:
                raise ValueError(f"matches is no regular expression: {error}") from None
        return self

    def accepts(self, answer: str) -> bool:
        """Whether this answer will do."""
        if self.matches is not None:
            return re.search(self.matches, answer) is not None
        return answer.strip() == (self.expect or "").strip()


def load_prompts(path: Path) -> list[Prompt]:
    """The prompts of a YAML file: a list of `prompt` with `expect` or `matches`.

    Raises:
        Refused: with what is wrong in it.
    """
    try:
        rows = yaml.safe_load(path.read_text())
        if not isinstance(rows, list) or not rows:
            raise ValueError("is no list of prompts")
        return [Prompt.model_validate(row) for row in rows]
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(str(part) for part in first['loc']) or 'a prompt'}: {first['msg']}"
    except yaml.YAMLError as error:
        what = f"is no YAML: {' '.join(str(error).split())}"
    except (OSError, UnicodeDecodeError, ValueError) as error:
        what = str(error)
    raise Refused([Problem(str(path), "prompts", what, "see docs/guides/rollout.md")])


class Hosts:
    """The hosts of an inventory, each connected when it is first asked, and anew when the connection was lost."""

    def __init__(self, inventory: Inventory) -> None:
        # It says what the exception says that it raises.
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)
        self._inventory = inventory
        self._state = State(inventory, Config())

    def group(self, name: str) -> list[str]:
        """Names of the hosts in a group, sorted as people do: node2 before node10."""
        try:
            hosts = self._inventory.get_group(name)
        except NoGroupError:
            return []
        return sorted((host.name for host in hosts), key=natural)

    def named(self, name: str, patterns: Sequence[str]) -> list[str]:
        """Names of the hosts of a group that patterns mean, as pyinfra's --exclude has them."""
        # Imported where it is needed: pyinfra_cli patches the standard library for gevent as it is imported.
        from pyinfra_cli.cli import _apply_inventory_exclude

        hosts = list(self._inventory.get_group(name))
        others = _apply_inventory_exclude(self._inventory, hosts, patterns) or []
        return sorted((host.name for host in hosts if host not in others), key=natural)

    def is_there(self, name: str, port: int) -> bool:
        """Whether anything is there: sshd, whomever it lets in, or somebody at a port."""
        host = self._host(name)
        address = host.data.get("ssh_hostname") or name
        for one in (int(host.data.get("ssh_port") or 22), port):
            with suppress(OSError):
                socket.create_connection((address, one), timeout=_KNOCK).close()
                return True
        # Behind a jump host it has no address for this machine.
        try:
            connect_once(host)
        except Exception:  # whatever keeps the controller out
            return False
        return True

    def data(self, name: str) -> Mapping[str, Any]:
        """What the inventory says of a host."""
        return dict(self._host(name).data.dict())

    def root(
        self, name: str, command: str, *, stdin: str | None = None, seconds: int = _PATIENCE, patient: bool = True
    ) -> list[str]:
        """Run a command as root. Its output, line by line.

        Args:
            patient: try to connect as often as the inventory says, and not once.

        Raises:
            Failure: if it does not succeed, with the last line of its complaints, or if the host does not answer.
        """
        words = StringCommand(f"sudo -n sh -c {shlex.quote(command)}")
        host = self._host(name)
        # All that a rollout asks for can be asked for twice. A connection may have been cut since it was last used.
        for attempt in (1, 2):
            known = host.connected
            try:
                if patient:
                    host.connect(raise_exceptions=True, show_errors=False)
                else:
                    connect_once(host)
                arguments = {} if stdin is None else {"_stdin": stdin}
                done, output = host.run_shell_command(words, _timeout=seconds, **arguments)
            except Exception as error:  # whatever keeps the controller out
                self._disconnect(host)
                if attempt == 2 or not known:
                    what = f"does not answer: {error or type(error).__name__}"
                    raise Failure(name, what, "look at it, and at the way to it") from None
                continue
            if done:
                return list(output.stdout_lines)
            said = [line for line in output.stderr_lines if line.strip()] or ["no reason given"]
            raise Failure(name, said[-1].strip(), "log in and look")
        raise AssertionError

    def _host(self, name: str) -> Host:
        host = self._inventory.get_host(name)
        assert isinstance(host, Host)
        return host

    def _disconnect(self, host: Host) -> None:
        try:
            host.disconnect()
        except Exception:  # it is gone already
            host.connected = False


class SshFleet:
    """A fleet as its inventory describes it: see `quench.rollout_fleet.Fleet` and `quench.decommission.Site`.

    Args:
        change: command line that brings nodes to what the inventory says; `--limit NODE` for each is added.
        prompts: questions to which the answers are known.
        checks: command line of the host checks; None: they are not run.
        logs: folder for what these commands print.
        without: balancers that are left out.
    """

    def __init__(
        self,
        hosts: Hosts,
        change: Sequence[str],
        prompts: Sequence[Prompt],
        checks: Sequence[str] | None,
        logs: Path,
        without: Sequence[str] = (),
    ) -> None:
        self._hosts, self._change, self._prompts, self._checks, self._logs = hosts, change, prompts, checks, logs
        self.balancers = [name for name in hosts.group(BALANCERS) if name not in without]
        self.without = without

    def is_there(self, balancer: str) -> bool:
        """Whether anything is there: sshd, or HAProxy at its port for clients."""
        return self._hosts.is_there(balancer, int(self._hosts.data(balancer).get("haproxy_port") or 443))

    def servers(self, balancer: str) -> list[haproxy.Server]:
        """All nodes in all pools."""
        try:
            return haproxy.servers(self._ask(balancer, "show stat"))
        except ValueError as error:
            what = f"HAProxy gives no statistics: {error}"
            raise Failure(balancer, what, "see systemctl status haproxy there") from None

    def set_state(self, balancer: str, servers: Sequence[haproxy.Server], state: haproxy.State) -> None:
        """Drain nodes, close them, or let them have requests again."""
        answer = [line for line in self._ask(balancer, haproxy.set_state(servers, state)) if line.strip()]
        if answer:
            what = f"HAProxy does not set {state}: {answer[0]}"
            raise Failure(balancer, what, "the admin socket must have the level admin")
        # A HAProxy that starts anew meanwhile knows it as well.
        self._hosts.root(
            balancer, f"[ ! -x {_KEEP_STATE} ] || setpriv --reuid=haproxy --regid=haproxy --clear-groups {_KEEP_STATE}"
        )

    def former(self, balancer: str) -> int:
        """Processes of HAProxy from before a reload that finish their answers."""
        return int(self._hosts.root(balancer, _FORMER)[0])

    def lock(self, balancer: str, claim: Claim, take_over: str) -> Claim | None:
        """Take the lock. Who has it, if that is somebody else."""
        words = ("rollout_lock.sh", STATE_DIRECTORY, claim.id, claim.to_json(), take_over)
        held = self._hosts.root(balancer, _script(*words))
        holder = Claim.from_json(held[0] if held else "")
        return None if holder.id == claim.id else holder

    def unlock(self, balancer: str, claim: Claim) -> None:
        """Give the lock back, if it is one's own."""
        lock, own = f"{STATE_DIRECTORY}/rollout.lock", shlex.quote(f'"id": "{claim.id}"')
        self._hosts.root(balancer, f"! grep -qF {own} {lock} 2>/dev/null || rm -f {lock}")

    def marked(self, balancer: str) -> list[str]:
        """Nodes that rollouts have drained, and not brought back."""
        return self._hosts.root(balancer, f"cat {_MARKS} 2>/dev/null; true")

    def mark(self, balancer: str, nodes: Collection[str]) -> None:
        """Write down which these are."""
        words = " ".join(shlex.quote(node) for node in nodes)
        put = f"printf '%s\\n' {words} >{_MARKS}.new && mv -f {_MARKS}.new {_MARKS}" if nodes else f"rm -f {_MARKS}"
        self._hosts.root(balancer, put)

    def keep(self, node: str, models: Collection[str]) -> Kept:
        """Keep the release that a node has."""
        command = remote_script("keep_release.sh", STATE_DIRECTORY, " ".join(models))
        lines = self._hosts.root(node, command, seconds=_WORK)
        facts = [line.split(" ", 1) for line in lines if " " in line]
        plan = next((value for key, value in facts if key == "plan"), "")
        return Kept(plan, tuple(value for key, value in facts if key == "model"), fresh="fresh" in lines)

    def change(self, nodes: Sequence[str]) -> None:
        """Bring nodes to what the inventory says."""
        words = [*self._change, *(word for node in nodes for word in ("--limit", node)), "-y"]
        self._run("change", words, nodes)

    def restore(self, node: str) -> None:
        """Bring the release back that is kept."""
        self._hosts.root(node, remote_script("restore_release.sh", STATE_DIRECTORY), seconds=_WORK)

    def let_go(self, node: str, plan: str) -> None:
        """A node is through."""
        folder = f"{STATE_DIRECTORY}/release"
        put = f"echo {plan} >{folder}/plan" if plan else f"rm -f {folder}/plan"
        self._hosts.root(node, f"{put} && rm -f {folder}/open")

    def units(self, node: str) -> list[tuple[str, str]]:
        """Units of Quench that are not active, each with its state."""
        # One that a condition of its own keeps from running is as it should be. Before systemd has asked it, the
        # condition says `no` as well.
        command = (
            f"ls {STATE_DIRECTORY}/converged | sed -n 's/\\.restart$//p' | while IFS= read -r unit; do "
            'state=$(systemctl is-active "$unit"); [ "$state" != active ] || continue; '
            'show() { systemctl show -p "$1" --value "$unit"; }; '
            '[ "$state $(show ConditionResult)" = "inactive no" ] && [ "$(show ConditionTimestampMonotonic)" != 0 ] || '
            'echo "$unit $state"; '
            "done"
        )
        rows = [line.split(" ", 1) for line in self._hosts.root(node, command)]
        return [(unit, state) for unit, state in rows]

    def completion(self, balancer: str, node: haproxy.Server, model: str) -> None:
        """Have a model complete something, directly at the node, by the way that requests take."""
        said = ""
        for path, body in _REQUESTS:
            status, text = self._ask_model(balancer, node, model, path, body)
            if status == 200 and text.strip():
                return
            said = said or f"status {status}"
            if status not in (400, 404, 422):
                break
        what = f"{model} gives no completion to {balancer}: {said}"
        raise Failure(node.name, what, "see the engine's journal and the proxy's error log there")

    def prompts(self, balancer: str, node: haproxy.Server, models: Collection[str]) -> None:
        """Have the models answer the operator's prompts as they should."""
        for number, prompt in enumerate(self._prompts, 1):
            for model in [prompt.model] if prompt.model else models:
                if model not in models:
                    continue
                message = {"role": "user", "content": prompt.prompt}
                body = {"messages": [message], "max_tokens": prompt.max_tokens, "temperature": 0, "seed": 0}
                status, text = self._ask_model(balancer, node, model, "/v1/chat/completions", body)
                try:
                    answer = json.loads(text)["choices"][0]["message"]["content"] or ""
                except (ValueError, LookupError, TypeError):
                    answer = None
                if answer is None or not prompt.accepts(answer):
                    # Neither prompt nor answer: they may be the house's own.
                    what = f"{model} does not answer prompt {number} as it should (status {status})"
                    raise Failure(node.name, what, "try it by hand; see the file of --prompts")

    def host_checks(self, node: str) -> None:
        """Run the checks of hosts, if the operator wants them."""
        if self._checks is not None:
            with TemporaryDirectory(prefix="quench-") as folder:
                config = Path(folder) / "ssh_config"
                config.write_text(ssh_config(node, self._hosts.data(node), f"{folder}/ssh"))
                words = [*self._checks, f"--hosts=ssh://{node}", f"--ssh-config={config}", "--sudo"]
                self._run("host checks", words, [node])

    def remains(self, node: Leaving) -> tuple[list[Found], list[Certificate]]:
        """What is there that a node that leaves may not keep, and its certificates."""
        command = _script("decommission.sh", "ask", *_leaving(node))
        try:
            return parse(self._hosts.root(node.name, command, seconds=_ANSWER))
        except ValueError as error:
            raise Failure(node.name, f"gives no account of what it has: {error}", "log in and look") from None

    def wipe(self, node: Leaving) -> list[str]:
        """Stop its services and take that away."""
        command = remote_script("decommission.sh", "wipe", *_leaving(node))
        lines = self._hosts.root(node.name, command, seconds=_WORK)
        return [line.partition(" ")[2] for line in lines if line.startswith("trimmed ")]

    def note(self, node: str, text: str) -> None:
        """Write a line into the node's journal."""
        self._hosts.root(node, f"logger --tag quench {shlex.quote(text)}", patient=False)

    def _ask(self, balancer: str, command: str) -> list[str]:
        return self._hosts.root(balancer, f"echo {shlex.quote(command)} | socat -t 5 - {_SOCKET}")

    def _ask_model(
        self, balancer: str, node: haproxy.Server, model: str, path: str, body: Mapping[str, Any]
    ) -> tuple[int, str]:
        words = (node.address, _CERTIFICATE, _AUTHORITY, path, model, str(_ANSWER))
        request = json.dumps({"model": model, **body})
        try:
            lines = self._hosts.root(balancer, shell_script(_ASK, *words), stdin=request, seconds=_ANSWER + 30)
        except Failure as failure:
            what = f"{balancer} gets no answer of {model} there: {failure.what}"
            raise Failure(node.name, what, "see the proxy and the firewall of the node") from None
        return (int(lines[-1]) if lines and lines[-1].isdigit() else 0), "\n".join(lines[:-1])

    def _run(self, what: str, words: Sequence[str], nodes: Sequence[str]) -> None:
        """A command of this machine, with its output in a file. Ctrl-C ends it first."""
        self._logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        log = self._logs / f"{time.strftime('%Y%m%dT%H%M%S')}-{what.replace(' ', '-')}-{'-'.join(nodes)[:80]}.log"
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as file:
            # In a session of its own: the terminal's Ctrl-C is for this process, which then asks it to end.
            process = subprocess.Popen(
                [*_until_the_end_of_this(), *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # So that pytest's summary has room for what it found.
                env={**os.environ, "COLUMNS": "500"},
            )
            try:
                code = process.wait()
            except KeyboardInterrupt:
                # It may have ended by itself at this moment.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                raise
        if code != 0:
            raise Failure(nodes[0], f"{what} ended with {code}: {reason(log, nodes)}", f"see {log}")


def _until_the_end_of_this() -> list[str]:
    """What a command begins with that the kernel is to kill if this process is killed, where it can: prctl(2) of Linux.

    A pyinfra that went on alone could restart a node that somebody has brought back by then.
    """
    program = shutil.which("setpriv")
    if program is None:
        return []
    known = subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout
    return [program, "--pdeathsig", "KILL", "--"] if "--pdeathsig" in known else []


def reason(log: Path, nodes: Sequence[str]) -> str:
    """The line of a log that says most: the last one of a node, or a check that failed, or else the last one."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if any(line.startswith((f"[{node}]", f"{node}:")) for node in nodes)]
    errors = [line for line in told if "quench:" in line or re.match(r"\S+: \S+: ", line)]
    # pytest's own summary, which counts the checks that failed, comes after them.
    failed = [line for line in lines if re.match(r"(FAILED|ERROR) \S+::", line)]
    return (errors or told or failed or lines or ["no output"])[-1]


def ssh_config(node: str, data: Mapping[str, Any], control: str) -> str:
    """OpenSSH's configuration for a node, after its data. All that use it share one login, by the socket `control`."""
    keys = {
        "HostName": "ssh_hostname",
        "User": "ssh_user",
        "Port": "ssh_port",
        "IdentityFile": "ssh_key",
        "UserKnownHostsFile": "ssh_known_hosts_file",
    }
    lines = [f"  {option} {data[key]}" for option, key in keys.items() if data.get(key)]
    # ERROR: without the banner, which ssh would say among what the commands say.
    own = [f"  ControlPath {control}", "  LogLevel ERROR"]
    # What pyinfra reads as well: aliases, and the way over other hosts, which are hosts of their own there. The first
    # value is the one that counts: ssh_config(5).
    more = Path(data.get("ssh_config_file") or "~/.ssh/config").expanduser().absolute()
    include = [f'Match all\n  Include "{more}"'] if more.is_file() else []
    return "\n".join([f"Host {node}", *lines, *own, *include]) + "\n"


def pyinfra_command(inventory: str, deploys: Sequence[str], group_data: Sequence[str]) -> list[str]:
    """The operator's own run of pyinfra, without what it is limited to."""
    beside = Path(sys.executable).with_name("pyinfra")
    program = str(beside) if beside.exists() else shutil.which("pyinfra") or "pyinfra"
    return [program, inventory, *deploys, *(word for folder in group_data for word in ("--group-data", folder))]


def check_command() -> list[str]:
    """The host checks of the checkout."""
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKOUT / "tests" / "host")]


def natural(name: str) -> list[tuple[int, str]]:
    """A key by which node2 comes before node10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _leaving(node: Leaving) -> tuple[str, ...]:
    return (STATE_DIRECTORY, " ".join(node.roles), " ".join(node.units), MODELS, *CACHES)


def _script(name: str, *arguments: str) -> str:
    return shell_script(_ASK.parent / name, *arguments)
