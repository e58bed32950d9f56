"""HAProxy: it lets in who has a key, to what is listed, and its pools have nodes that answer."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Unit

EXPOSURE = 2.0
FOLDER = "/etc/haproxy/quench"
UNITS = ("haproxy.service", "body-router.service")
# What a client sends and no log may hold: as a key, in a query string.
CANARY = "sk-canary-this-must-stand-in-no-log"


@pytest.fixture(scope="module")
def ask(host: Host) -> Callable[[str], list[str]]:
    """The answer of the running process to a command on its socket."""

    def lines(command: str) -> list[str]:
        answer = host.check_output(f"echo '{command}' | socat -t 5 - /run/haproxy/admin.sock")
        return [line for line in answer.splitlines() if line]

    return lines


@pytest.fixture(scope="module")
def status(host: Host) -> Callable[..., str]:
    """The HTTP status of a request from the host to itself; further arguments are curl's."""
    # The certificate carries the name that clients use, which need not lead here.
    command = "curl --silent --insecure --path-as-is --max-time 10 --output /dev/null --write-out '%%{http_code}'"
    port = host.check_output("grep -m 1 -o 'bind :[0-9]* ssl' /etc/haproxy/haproxy.cfg").split()[1]

    def get(path: str, *arguments: str) -> str:
        if not host.exists("curl"):
            pytest.skip("the host has no curl to ask HAProxy with")
        words = [f"https://127.0.0.1{port}{path}", *arguments]
        return str(host.run(command + " %s" * len(words), *words).stdout)

    return get


@pytest.mark.parametrize("name", [*UNITS, "haproxy-log.socket"])
def test_it_is_enabled_and_runs_with_its_present_unit_file(host: Host, unit: Callable[[str], Unit], name: str) -> None:
    assert host.service(name).is_enabled
    assert unit(name).property("ActiveState") == "active", unit(name).journal()
    assert unit(name).property("NeedDaemonReload") == "no"


@pytest.mark.parametrize("name", [*UNITS, "haproxy-log.service"])
def test_it_is_not_root_and_its_sandbox_is_tight(host: Host, unit: Callable[[str], Unit], name: str) -> None:
    assert "0" not in unit(name).kernel_says()["Uid"].split()
    text = host.check_output(f"systemd-analyze security --no-pager {name}")
    assert float(text.split("Overall exposure level for")[1].split(":")[1].split()[0]) <= EXPOSURE


def test_nginx_is_the_body_routers_program_alone(unit: Callable[[str], Unit]) -> None:
    assert unit("nginx.service").property("ActiveState") == "inactive"


def test_its_configuration_is_valid(host: Host) -> None:
    assert host.run("cd / && haproxy -c -f /etc/haproxy/haproxy.cfg").rc == 0


@pytest.mark.parametrize("name", ["keys", "lists", "pools"])
def test_the_running_process_has_the_keyring_of_the_files(
    host: Host, ask: Callable[[str], list[str]], name: str
) -> None:
    path = f"{FOLDER}/{name}.map"
    wanted = [line for line in host.file(path).content_string.splitlines() if line]
    assert sorted(line.split(" ", 1)[1] for line in ask(f"show map {path}")) == sorted(wanted) != []


def test_no_key_stands_on_the_host(host: Host) -> None:
    for line in host.file(f"{FOLDER}/keys.map").content_string.splitlines():
        sha256, client = line.split(" ")
        assert len(sha256) == 64 and set(sha256) <= set("0123456789abcdef"), client


def test_private_keys_are_for_its_user_alone(host: Host) -> None:
    # One that an ACME CA gave lies where the role acme has it, for its group.
    shown = host.check_output("sed -n 's/^ *bind .* ssl crt \\([^ ]*\\) .*/\\1/p' /etc/haproxy/haproxy.cfg").split()[0]
    for path in (f"{shown}.key", f"{FOLDER}/node.crt.key"):
        file = host.file(path)
        group = "haproxy" if path.startswith(FOLDER) else "acme"
        assert (file.user, file.group, file.mode) == ("root", group, 0o640), path


def test_each_pool_has_a_node_that_answers(ask: Callable[[str], list[str]]) -> None:
    rows = [line.split(",") for line in ask("show stat")]
    names = rows[0]
    servers = [
        dict(zip(names, row, strict=False))
        for row in rows[1:]
        if row[0].startswith("pool_") and row[1] not in ("BACKEND", "FRONTEND")
    ]
    assert servers != []
    for pool in {server["# pxname"] for server in servers}:
        # A star stands before the last result while the next check is under way.
        found = {
            server["svname"]: server["check_status"].removeprefix("* ")
            for server in servers
            if server["# pxname"] == pool
        }
        assert "L7OK" in found.values(), found


def test_its_socket_is_for_root_and_itself(host: Host) -> None:
    socket = host.file("/run/haproxy/admin.sock")
    assert socket.mode & 0o077 == 0
    assert host.file("/run/haproxy").mode == 0o700


def test_without_a_key_nothing_is_answered(status: Callable[..., str]) -> None:
    assert status("/v1/models") == "401"
    assert status("/v1/models", "--header", f"Authorization: Bearer {CANARY}") == "401"


@pytest.mark.parametrize("path", ["/", "/metrics", "/health", "/v1/load_lora_adapter", "//v1/models", "/V1/models"])
def test_what_is_not_listed_is_not_there(status: Callable[..., str], path: str) -> None:
    assert status(path, "--header", f"Authorization: Bearer {CANARY}") == "404"


def test_its_log_is_json_and_holds_no_key_and_no_query(host: Host, status: Callable[..., str]) -> None:
    # A path that nobody has asked for before: lines of an hour ago would say nothing of now.
    name = f"check-{secrets.token_hex(8)}"
    path = f"/v1/{name}"
    status(f"{path}?key={CANARY}", "--header", f"X-API-Key: {CANARY}")
    # By a pipe, so a moment later. HAProxy writes a slash as `\/`.
    find = "for _ in $(seq 50); do grep -qF %s {0} && break; sleep 0.1; done; tail -n 50 {0}"
    log = host.check_output(find.format("/var/log/haproxy/access.json"), name)
    assert CANARY not in log
    # The others are HAProxy's own words at its end.
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert path in {line.get("path") for line in lines}
