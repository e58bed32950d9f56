"""What the lab's tests are written with: the real command, on real hosts."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quench.lab import fleet
from quench.lab.state import HostSpec, Lab
from roles.base.deploy import PACKAGES as BASE
from roles.haproxy.files import PACKAGES as HAPROXY
from roles.hardening.files import PACKAGES as HARDENING
from roles.keepalived.files import PACKAGES as KEEPALIVED
from roles.nginx.files import PACKAGES as NGINX
from roles.vllm.deploy import PACKAGES as VLLM

# What all roles install. A host that has it from the start, as some images do, saves a test minutes.
STOCK = (
    *BASE, *VLLM, *NGINX, *HARDENING, *HAPROXY, *KEEPALIVED, "logrotate", "firewalld", "nftables", "netbase",
)  # fmt: skip

CHECKOUT = Path(__file__).resolve().parents[2]
QUENCH = str(Path(sys.executable).with_name("quench"))
DEPLOY = "deploys/inference.py"
BALANCER_DEPLOY = "deploys/balancer.py"
MODEL = "tiny-llama"

# An inventory that is the lab's, but for some keys. CHANGES is filled in for each test.
_INVENTORY = """\
import runpy

_CHANGES = {changes}
_HOSTS = {hosts}


def _changed(hosts):
    return [
        (name, {{**{{key: value for key, value in data.items() if key not in _CHANGES.get("remove", [])}},
                 **_CHANGES.get(name, _CHANGES.get("*", {{}}))}})
        for name, data in hosts
        if _HOSTS is None or name in _HOSTS
    ]


_LAB = runpy.run_path("inventories/lab.py")
inference = _changed(_LAB["inference"]) + _CHANGES.get("add", [])
balancers = _changed(_LAB["balancers"])
"""


@dataclass
class Run:
    """A finished pyinfra run."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err

    @property
    def totals(self) -> dict[str, int]:
        return json.loads(self.out)["results"]["totals"]


@dataclass
class Node:
    """A host of a lab, and the ways to it."""

    lab: Lab
    name: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return next(host.address for host in self.lab.hosts if host.name == self.name)

    @property
    def base_url(self) -> str:
        return f"https://{self.address}/v1"

    @property
    def ca(self) -> str:
        return str(self.lab.folder / "ca" / "ca.crt")

    @property
    def key(self) -> str:
        return (self.lab.folder / "api.key").read_text().strip()

    def root(self, command: str, *, check: bool = True) -> str:
        """Run a command on the host as root, beside SSH."""
        done = fleet.execute(self.lab, self.name, command)
        if check and done.returncode != 0:
            raise AssertionError(f"{command}: {done.stderr}{done.stdout}")
        return done.stdout.strip()

    def tree(self) -> str:
        """All that Quench brought to the host: hash, mode and owner of each file, and the stamps."""
        return self.root(
            "cat /var/lib/quench/manifest/* | cut -d' ' -f5- | sort | while read -r path; do "
            "echo \"$(stat -c '%a %U %G' $path) $(sha256sum $path)\"; done; "
            "grep -r . /var/lib/quench/converged /var/lib/quench/manifest | sort; cat /opt/vllm/*/.complete; "
            "find / -xdev -name '*.quench-new' 2>/dev/null; ls -d /run/quench.* 2>/dev/null; "
            # And what a killed run may leave: a way back, half a package, a unit that failed.
            "ls /var/lib/quench/guard /etc/systemd/system/quench-rollback-* 2>/dev/null; dpkg --audit; "
            "systemctl --failed --plain --no-legend; true"
        )

    def request(
        self, path: str, *, key: str | None = None, body: object = None, method: str | None = None, timeout: float = 60
    ) -> tuple[int, dict[str, str], bytes]:
        """A request over TLS, checked against the lab's CA; not by name, since some tests share a certificate."""
        context = ssl.create_default_context(cafile=self.ca)
        context.check_hostname = False
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"https://{self.address}{path}", data=data, method=method)
        request.add_header("Content-Type", "application/json")
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, context=context, timeout=timeout) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()


def hosts_of(name: str, specs: Sequence[HostSpec], *, engine: str = "stand-in") -> Iterator[dict[str, Node]]:
    """A lab of hosts that no run has touched, by their names; it is taken away at the end.

    QUENCH_KEEP_LABS=1 takes and leaves one as it is: for writing tests.
    """
    keep = bool(os.environ.get("QUENCH_KEEP_LABS"))
    if not keep:
        fleet.down(name, missing_ok=True)
    lab = fleet.up_hosts(name, specs, engine=engine)
    try:
        yield {spec.name: Node(lab, spec.name) for spec in specs}
    finally:
        # A module that was the last to need it may have taken it down.
        if not keep:
            fleet.down(name, missing_ok=True)


def tokens_so_far(client: Any, node: Node) -> tuple[int, int]:
    """Tokens of one long answer that the real engine has made, and those that its client has, when it is half way.

    Half way is where its worker is stopped for a moment: on cores that have other work, no clock would tell.
    """

    # Of answers that are not over: a balancer's check, which asks for a token of its own, is none of them.
    metric = (
        "curl -fsS http://127.0.0.1:8000/metrics | awk '/^vllm:generation_tokens_total/ { n += $2 } "
        "/^vllm:request_generation_tokens_sum/ { n -= $2 } END { print int(n) }'"
    )
    # Not to be found by itself: the pattern is another word than the process that it means.
    signal = "pkill -%s -f VLLM::[W]orker"

    def read(received: list[int]) -> None:
        stream = client.completions.create(
            model=MODEL, prompt="hello", max_tokens=900, stream=True, extra_body={"ignore_eos": True},
            stream_options={"include_usage": True, "continuous_usage_stats": True},
        )  # fmt: skip
        received.extend(chunk.usage.completion_tokens for chunk in stream)

    for _ in range(8):
        before, received = int(node.root(metric)), [0]
        reading = threading.Thread(target=read, args=(received,))
        stopping = threading.Thread(
            target=node.root, args=(f"until [ $({metric}) -gt {before} ]; do :; done; {signal % 'STOP'}",)
        )
        stopping.start()
        time.sleep(0.5)  # until the loop runs there
        reading.start()
        stopping.join(timeout=60)
        try:
            time.sleep(1)
            made, there = int(node.root(metric)) - before, received[-1]
        finally:
            node.root(signal % "CONT")
        reading.join(timeout=60)
        assert received[-1] == 900
        if 0 < made < 900:
            return made, there
    raise AssertionError("the engine was never half way when it was stopped")


def pyinfra_command(inventory: str, *options: str, deploy: str = DEPLOY) -> list[str]:
    return [str(Path(sys.executable).with_name("pyinfra")), inventory, deploy, "--group-data",
            "inventories/group_data", *options]  # fmt: skip


def run_pyinfra(
    node: Node, *options: str, inventory: str = "inventories/lab.py", deploy: str = DEPLOY, timeout: float = 400
) -> Run:
    """The operator's command line, as a process of its own."""
    done = subprocess.run(
        pyinfra_command(inventory, *options, deploy=deploy), cwd=CHECKOUT, env=environment(node), capture_output=True,
        text=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False,
    )  # fmt: skip
    return Run(done.returncode, done.stdout, done.stderr)


def run_quench(node: Node, *words: str, timeout: float = 500) -> Run:
    """A command of Quench, as a process of its own."""
    done = subprocess.run(
        [QUENCH, *words], cwd=CHECKOUT, env=environment(node), capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=timeout, check=False,
    )  # fmt: skip
    return Run(done.returncode, done.stdout, done.stderr)


class Background:
    """A command of Quench that goes on while a test does something else."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def wait_for(self, *words: str) -> None:
        """Until it says that this step of this node is over."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if all(word in line for word in words):
                return
        raise AssertionError(f"it ended without {words}")

    def end(self) -> Run:
        """Wait for its end. With what it has not said yet."""
        assert self.process.stdout is not None and self.process.stderr is not None
        err, out = self.process.stderr.read(), self.process.stdout.read()
        return Run(self.process.wait(), out, err)


@contextmanager
def background(node: Node, *words: str) -> Iterator[Background]:
    """Start it. Whatever becomes of the test, it does not run on."""
    with subprocess.Popen(
        [QUENCH, *words], cwd=CHECKOUT, env=environment(node), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield Background(process)
        finally:
            process.kill()


def environment(node: Node) -> dict[str, str]:
    return {**os.environ, "QUENCH_LAB": node.lab.name, **node.environment}


def write(node: Node, path: str, text: str) -> None:
    """Write a file on the host, as root, beside SSH."""
    done = fleet.execute(node.lab, node.name, f"cat >{path}", stdin=text)
    assert done.returncode == 0, done.stderr


def write_inventory(folder: Path, changes: dict[str, Any], hosts: list[str] | None = None) -> str:
    """An inventory file with changed data. `*` or a host's name has keys to set; `remove` and `add` say themselves."""
    path = folder / "changed.py"
    path.write_text(_INVENTORY.format(changes=repr(changes), hosts=repr(hosts)))
    return str(path)


def lab_data(node: Node) -> dict[str, Any]:
    """The inventory data of a host, as inventories/lab.py has it."""
    import runpy

    os.environ["QUENCH_LAB"] = node.lab.name
    return dict(runpy.run_path("inventories/lab.py")["inference"])[node.name]
