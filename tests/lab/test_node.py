"""A bare host becomes a node that answers, with the real engine (on the CPU: the GPU is simulated by its absence)."""

from __future__ import annotations

import json
import shlex
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from support import (
    CHECKOUT,
    MODEL,
    Node,
    environment,
    lab_data,
    run_pyinfra,
    tokens_so_far,
    write_inventory,
)  # fmt: skip

from quench.lab import fleet


@pytest.fixture(scope="module")
def client(real_node: Node) -> Iterator[openai.OpenAI]:
    with openai_client(real_node, real_node.key) as opened:
        yield opened


def openai_client(node: Node, key: str) -> openai.OpenAI:
    http = openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile=node.ca))
    return openai.OpenAI(base_url=node.base_url, api_key=key, http_client=http, max_retries=0)


def test_the_second_run_changes_nothing(real_node: Node) -> None:
    run = run_pyinfra(real_node, "-y", "--json")
    assert run.code == 0, run.text
    assert run.totals["hosts"] > 0
    assert run.totals["success"] == 0
    assert run.totals["error"] == 0


def test_a_dry_run_sees_nothing_to_change_either(real_node: Node) -> None:
    run = run_pyinfra(real_node, "--dry", "--json")
    assert run.code == 0, run.text
    assert [step for step in json.loads(run.out)["plan"] if step["hosts_with_change"]] == []


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=8, temperature=0
    )
    assert answer.usage is not None and answer.usage.completion_tokens > 0
    assert answer.choices[0].finish_reason in ("length", "stop")


def test_a_completion_is_answered(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="hello", max_tokens=8, extra_body={"ignore_eos": True})
    assert answer.usage is not None and answer.usage.completion_tokens == 8


def test_a_streamed_chat_comes_in_pieces(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=8, temperature=0, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    pieces = [chunk.choices[0] for chunk in stream]
    assert len(pieces) >= 8
    assert pieces[-1].finish_reason == "length" and not any(piece.finish_reason for piece in pieces[:-1])


def test_each_token_is_there_when_it_is_made(real_node: Node, client: openai.OpenAI) -> None:
    made, received = tokens_so_far(client, real_node)
    assert made - received <= 1


def test_a_wrong_key_is_refused(real_node: Node) -> None:
    with (
        openai_client(real_node, real_node.key[:-1] + "x") as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_too_many_requests_are_refused(real_node: Node, client: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as refused:
        for _ in range(300):
            client.models.list()
    assert refused.value.response.headers["Retry-After"] == "1"
    time.sleep(6)  # until the burst of the lab's client is whole again


def test_an_unknown_model_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "hello"}])
    assert refused.value.code == "model_not_found"


def engine_routes(node: Node) -> set[tuple[str, str]]:
    """Method and path of every route that the engine reports: its OpenAPI document and its route log."""
    document = json.loads(node.root("curl -fsS http://127.0.0.1:8000/openapi.json"))
    routes = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    log = node.root(f"journalctl -u vllm@{MODEL}.service -o cat | grep -o 'Route: .*' | sort -u")
    for line in log.splitlines():
        path, methods = line.removeprefix("Route: ").split(", Methods: ")
        routes |= {(method.strip(), path) for method in methods.split(",")}
    return routes


def listed(node: Node) -> set[tuple[str, str]]:
    """The allow-list as the host has it."""
    from quench import Engine
    from roles.nginx.files import routes
    from roles.vllm.files import ROUTES

    return {(route.method, route.path) for route in routes([Engine(MODEL, 8000, ROUTES["generate"])], balanced=False)}


def raw_request(node: Node, method: str, path: str, key: str | None) -> int:
    """A request whose path goes out letter by letter; HTTP libraries would mend it."""

    head = f"{method} {path} HTTP/1.1\r\nHost: {node.address}\r\nConnection: close\r\nContent-Length: 2\r\n"
    head += f"Authorization: Bearer {key}\r\n" if key else ""
    context = ssl.create_default_context(cafile=node.ca)
    with (
        socket.create_connection((node.address, 443), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=node.address) as tls,
    ):
        tls.sendall(f"{head}\r\n{{}}".encode())
        status = int(tls.recv(64).split(b" ")[1])
        # To the end, so that nginx closes first and no connection is left over.
        while tls.recv(65536):
            pass
        return status


def spellings(path: str) -> list[str]:
    return [
        path, f"/{path}", f"{path}/", path.upper() if path.upper() != path else f"{path}/.", f"{path}/.", f"/.{path}",
        path.replace("/", "//"), path.replace("/", "/%2e/", 1), f"/x/..{path}",
        path[:1] + f"%{ord(path[1]):02x}" + path[2:], f"{path}%20", f"{path};x",
    ]  # fmt: skip


def test_what_is_not_listed_is_not_there_with_or_without_a_key(real_node: Node) -> None:
    routes, allowed = engine_routes(real_node), listed(real_node)
    # The engine really has what must not be reached; else this test would try nothing.
    assert {"/metrics", "/tokenize", "/invocations", "/version", "/openapi.json"} <= {path for _, path in routes}
    wrong = []
    for method, path in sorted(routes):
        concrete = path.replace("{response_id}", "resp_1")
        for spelling in spellings(concrete):
            if (method, spelling) in allowed:
                continue
            for key in (None, real_node.key):
                status = raw_request(real_node, method, spelling, key)
                if status != 404:
                    wrong.append((method, spelling, bool(key), status))
    assert wrong == []


def test_listed_paths_are_reached(real_node: Node) -> None:
    for method, path in sorted(listed(real_node)):
        assert raw_request(real_node, method, path, None) == 401
        assert raw_request(real_node, method, path, real_node.key) in (200, 400)


def test_the_engine_is_not_reached_from_another_host(real_node: Node) -> None:
    with pytest.raises(OSError):
        socket.create_connection((real_node.address, 8000), timeout=2)
    assert "127.0.0.1:8000" in real_node.root("ss -ltnH 'sport = :8000'")


def test_the_engines_filter_lets_nothing_out(real_node: Node) -> None:
    """The filter of the unit, asked of the kernel: the property alone would also show where it does nothing."""
    unit = f"vllm@{MODEL}.service"
    denied = real_node.root(f"systemctl show --value -p IPAddressDeny {unit}")
    assert set(denied.split()) == {"::/0", "0.0.0.0/0"}
    reach = f"timeout 5 bash -c '</dev/tcp/{real_node.lab.gateway}/8080' && echo reached || echo stopped"
    assert real_node.root(reach) == "reached"
    filtered = (
        f"systemd-run --quiet --wait --pipe -p IPAddressDeny=any -p IPAddressAllow=localhost sh -c {shlex.quote(reach)}"
    )
    assert real_node.root(filtered) == "stopped"


def test_pyinfras_own_operations_bring_files_to_a_hardened_host(real_node: Node, tmp_path: Path) -> None:
    """By SFTP, as an operator would do it beside Quench: sshd and a /tmp without programs let that through."""
    source = tmp_path / "note"
    source.write_text("brought by SFTP\n")
    run = run_pyinfra(real_node, f"src={source}", "dest=/var/lib/note", "mode=600", "-y", deploy="files.put")
    assert run.code == 0, run.text[-3000:]
    found = real_node.root("cd /var/lib && stat -c '%a %U' note && cat note && rm note")
    assert found == "600 root\nbrought by SFTP"


def test_the_sandbox_holds(real_node: Node) -> None:
    for unit in (f"vllm@{MODEL}.service", "nginx.service"):
        answer = real_node.root(f"systemd-analyze security --no-pager {unit} | tail -n 1")
        exposure = float(answer.split(": ")[1].split()[0])
        assert exposure <= 2.0, answer


def test_the_host_checks_pass_here_as_on_a_live_server(real_node: Node, tmp_path: Path) -> None:
    """The checks of tests/host, over SSH as an ordinary user with sudo."""
    (tmp_path / "ssh_config").write_text(fleet.ssh_config(real_node.lab))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/host", "--hosts=ssh://node1", "--sudo",
         f"--ssh-config={tmp_path / 'ssh_config'}"],
        cwd=CHECKOUT, env=environment(real_node), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    # pytest ends with 0 as well if all is skipped.
    assert " passed" in done.stdout.splitlines()[-1]


def test_a_stop_lets_a_streamed_answer_finish(real_node: Node, client: openai.OpenAI) -> None:
    # An answer that was over before the stop came shows nothing, so there are a few tries; none may be cut. The engine
    # stays stopped: the next test starts another.
    for _ in range(4):
        answer = client.completions.create(
            model=MODEL,
            prompt="hello",
            max_tokens=900,
            n=8,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        next(answer)
        with ThreadPoolExecutor(1) as pool:
            begun = time.monotonic()
            stopping = pool.submit(real_node.root, f"systemctl stop vllm@{MODEL}.service")
            *_, last = answer
            ended = time.monotonic()
            stopping.result(timeout=90)
        assert last.usage is not None and last.usage.completion_tokens == 8 * 900
        if ended - begun > 0.5:
            return
        real_node.root(f"systemctl start vllm@{MODEL}.service")
    pytest.fail("no answer was still being given when the engine was stopped")


def test_a_model_that_is_split_over_two_workers_answers(real_node: Node, tmp_path: Path) -> None:
    """As on two GPUs: here the workers are two processes on the CPU. Last, since it restarts the engine."""
    model = {**lab_data(real_node)["vllm_models"][MODEL], "gpus": [0, 1]}
    changes = {"vllm_models": {MODEL: model}, "vllm_start_seconds": 240, "vllm_hf_token": "env:HF_TOKEN"}
    split = write_inventory(tmp_path, {"*": changes})
    run = run_pyinfra(real_node, "-y", inventory=split)
    assert run.code == 0, run.text[-4000:]
    with openai_client(real_node, real_node.key) as client:
        answer = client.completions.create(model=MODEL, prompt="hello", max_tokens=4, extra_body={"ignore_eos": True})
    assert answer.usage is not None and answer.usage.completion_tokens == 4
    listening = real_node.root("ss -ltnH").splitlines()
    # sshd, and nginx; the engine and its workers are on the loopback address alone.
    ports = {line.split()[3].rpartition(":")[2] for line in listening if "127.0.0.1:" not in line.split()[3]}
    assert ports == {"22", "443"}
    # The real engine writes down what it was started with, and not its token.
    token = real_node.environment["HF_TOKEN"]
    assert token in real_node.root(f"cat /etc/vllm/{MODEL}.env")
    assert token not in real_node.root("journalctl --no-pager; cat /proc/[0-9]*/cmdline 2>/dev/null", check=False)
