"""Keys come and go within seconds, on a balancer and on a node without one, and nobody else notices. The engine is the
stand-in; HAProxy, nginx, TLS, keys and the `quench` command are real."""

from __future__ import annotations

import json
import ssl
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fleets import Fleet, ask, fleet_of, lost
from support import BALANCER_DEPLOY, CHECKOUT, DEPLOY, MODEL, QUENCH, STOCK, Node, run_pyinfra, run_quench

from quench import keyring
from quench.lab.state import HostSpec
from tests.load.load import running

SPECS = (HostSpec("lb1", "debian-12", zone="dmz"), HostSpec("node1", "debian-12", packages=STOCK))
# Seconds from the command to the first request, on all hosts, that finds the key good, or refused. The median of three,
# since a machine that has other work takes longer now and then.
SOON = 5
# And none of them longer than this.
ONCE = 20

# The lab, with the keyring's file: on the balancer, or on the node as well, which is then none of the balancer's.
_INVENTORY = """\
import runpy

from quench import keyring

_LAB = runpy.run_path("inventories/lab.py")
_KEYS = keyring.load({keyring!r})
_ALONE = {{"nginx_clients": _KEYS, "nginx_balancers": [], "nginx_balancer_ca": ""}} if {alone} else {{}}
inference = [(name, {{**data, **_ALONE}}) for name, data in _LAB["inference"]]
balancers = [(name, {{**data, "haproxy_clients": _KEYS}}) for name, data in _LAB["balancers"]]
"""


@dataclass
class Keys:
    """A fleet, its keyring, and the command that is being tested."""

    fleet: Fleet
    folder: Path
    load_key: str

    def quench(self, *words: str) -> str:
        """What `quench keys` prints."""
        if words[0] != "push":
            words = (*words, "--keyring", str(self.folder / "keyring.yaml"))
        run = run_quench(self.fleet.nodes[0], "keys", *words, timeout=60)
        assert run.code == 0, run.text
        return run.out.strip()

    def inventory(self, *, alone: bool = False) -> str:
        path = self.folder / f"fleet-{alone}.py"
        path.write_text(_INVENTORY.format(keyring=str(self.folder / "keyring.yaml"), alone=alone))
        return str(path)

    def push(self, **options: Any) -> dict[str, Any]:
        """What became of each host."""
        words = ("--group-data", "inventories/group_data", "--json")
        found: dict[str, Any] = json.loads(self.quench("push", self.inventory(**options), *words))
        return found


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    folder = tmp_path_factory.mktemp("keys")
    path = folder / "keyring.yaml"
    for words in (("load", "--requests-per-minute", "60000", "--concurrent", "1000"), ("stays",)):
        command = [QUENCH, "keys", "add", *words, "--keyring", str(path)]
        value = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.strip()
        if words[0] == "load":
            load_key = value
    for fleet in fleet_of("test-keys", folder, SPECS, lb1={"haproxy_clients": keyring.load(path)}):
        yield Keys(fleet, folder, load_key)


def status(host: Node, key: str) -> int:
    context = ssl.create_default_context(cafile=host.ca)
    context.check_hostname = False
    request = urllib.request.Request(f"https://{host.address}/v1/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def processes(balancer: Node) -> str:
    """HAProxy's own, and the worker's: a reload would make another."""
    return balancer.root("p=$(systemctl show --property MainPID --value haproxy.service); echo $p $(pgrep -P $p)")


def no_change(node: Node, inventory: str, deploy: str, group: str) -> None:
    run = run_pyinfra(node, "-y", "--json", "--limit", group, inventory=inventory, deploy=deploy)
    assert run.code == 0, run.text[-3000:]
    assert (run.totals["success"], run.totals["error"]) == (0, 0), run.out[-3000:]


def test_a_key_comes_and_goes_on_a_balancer_while_others_work(keys: Keys) -> None:
    fleet = keys.fleet
    balancer, before = fleet.balancers[0], processes(fleet.balancers[0])
    assert len(before.split()) == 2
    with running(fleet.load(key=keys.load_key, streams=2, stream_words=100, plain=2)) as tally:
        tally.wait(lambda tally: tally.flowing >= 2)
        key = keys.quench("add", "team-a", "--models", MODEL)
        assert status(balancer, key) == 401
        added = timed(keys, balancer, key, 200)
        second = keys.quench("rotate", "team-a")
        first_hash = keyring.read(keys.folder / "keyring.yaml")["team-a"].keys[0].sha256
        keys.push()
        assert (status(balancer, key), status(balancer, second)) == (200, 200)
        keys.quench("revoke", "team-a", "--key", first_hash[:8])
        revoked = timed(keys, balancer, key, 401)
        assert status(balancer, second) == 200
    print(f"good after {added:.1f} s, refused after {revoked:.1f} s, {tally.count()}")
    assert lost(tally) == []
    assert tally.count()["ok"] > 10
    assert processes(balancer) == before
    assert max(added, revoked) < ONCE


def timed(keys: Keys, host: Node, key: str, wanted: int, **options: Any) -> float:
    """Seconds of a push, after which this is at once what becomes of a key."""
    began = time.monotonic()
    found = keys.push(**options)
    assert found["ok"] is True
    assert status(host, key) == wanted
    return time.monotonic() - began


def test_a_second_push_changes_nothing_nor_does_a_whole_run(keys: Keys) -> None:
    found = keys.push()
    assert found["hosts"] == {"lb1": "unchanged"}
    no_change(keys.fleet.balancers[0], keys.inventory(), BALANCER_DEPLOY, "balancers")


def test_a_map_that_the_process_has_lost_is_brought_back(keys: Keys) -> None:
    balancer = keys.fleet.balancers[0]
    ask(balancer, "clear map /etc/haproxy/quench/keys.map")
    assert status(balancer, keys.load_key) == 401
    assert keys.push()["hosts"] == {"lb1": "changed"}
    assert status(balancer, keys.load_key) == 200


@pytest.mark.alone
def test_a_key_comes_and_goes_on_a_balancer_and_on_a_node_without_one(keys: Keys) -> None:
    balancer, node = keys.fleet.balancers[0], keys.fleet.nodes[0]
    run = run_pyinfra(node, "-y", "--limit", "inference", inventory=keys.inventory(alone=True), deploy=DEPLOY)
    assert run.code == 0, run.text[-3000:]
    workers = node.root("pgrep -x nginx")
    load = {"address": node.address, "server_name": node.address, "key": keys.load_key}
    with running(keys.fleet.load(**load, streams=2, stream_words=100, plain=2)) as tally:
        tally.wait(lambda tally: tally.flowing >= 2)
        added, revoked = [], []
        for client in ("team-b", "team-c", "team-d"):
            key = keys.quench("add", client)
            added.append(timed(keys, node, key, 200, alone=True))
            assert status(balancer, key) == 200
            keys.quench("revoke", client)
            revoked.append(timed(keys, node, key, 401, alone=True))
            assert status(balancer, key) == 401
    print(f"two hosts: good after {added} s, refused after {revoked} s, {tally.count()}")
    assert lost(tally) == []
    assert node.root("pgrep -x nginx") == workers
    assert max(*added, *revoked) < ONCE
    assert statistics.median(added) < SOON
    assert statistics.median(revoked) < SOON
    no_change(node, keys.inventory(alone=True), DEPLOY, "inference")


def test_a_limit_that_nginx_has_no_zone_for_is_refused_before_anything_changes(keys: Keys) -> None:
    node = keys.fleet.nodes[0]
    before = node.tree()
    keys.quench("add", "odd", "--requests-per-minute", "77")
    with pytest.raises(AssertionError, match=r"nginx has no limit of requests_per_minute = 77, burst = 20 yet"):
        keys.push(alone=True)
    assert node.tree() == before
    keys.quench("revoke", "odd")


def test_the_keyring_holds_no_key(keys: Keys) -> None:
    assert "sk-" not in (keys.folder / "keyring.yaml").read_text()
