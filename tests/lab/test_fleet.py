"""Balancers in front of nodes: who gets in, to which model, and what happens when a part goes away. The engine is the
stand-in; HAProxy, nginx, TLS, keys and every packet are real."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from cryptography import x509
from fleets import Fleet, all_up, ask, entry, key_of, lost, provision, servers, wait
from support import BALANCER_DEPLOY, CHECKOUT, MODEL, Node, run_pyinfra, write, write_inventory

from quench import ca
from quench.lab import fleet as labs
from quench.operations.commands import shell_script
from tests.load.load import running

CHAT = "/v1/chat/completions"


class Answer:
    """Status, headers and body of an answer over HTTP/1.1."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


def call(
    host: Node,
    path: str,
    *,
    key: str = "demo",
    body: Any = None,
    chunked: bool = False,
    port: int = 443,
    certificate: str = "",
    **more: str,
) -> Answer:
    """A request to a host, over TLS that is checked against the lab's CA."""
    context = ssl.create_default_context(cafile=host.ca)
    context.check_hostname = False
    if certificate:
        context.load_cert_chain(certificate, certificate.removesuffix("crt") + "key")
    connection = http.client.HTTPSConnection(host.address, port, context=context, timeout=30)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {
        "Content-Type": "application/json",
        **more,
        **({"Authorization": f"Bearer {key_of(key)}"} if key else {}),
    }
    parts = (data[at : at + 10000] for at in range(0, len(data), 10000)) if chunked and data else data
    connection.request("GET" if data is None else "POST", path, parts, headers, encode_chunked=chunked)
    try:
        return Answer(connection.getresponse())
    finally:
        connection.close()


def question(**more: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": "a question nobody may log"}],
        "model": MODEL,
        "max_tokens": 1,
        **more,
    }


@pytest.fixture
def balancer(fleet: Fleet) -> Node:
    return fleet.balancers[0]


def test_a_second_run_changes_nothing_nor_does_one_of_the_whole_site(fleet: Fleet, tmp_path: Path) -> None:
    runs = provision(fleet, tmp_path, "--json")
    inventory = write_inventory(tmp_path, fleet.changes)
    runs.append(run_pyinfra(fleet.nodes[0], "-y", "--json", inventory=inventory, deploy="deploys/site.py"))
    for run in runs:
        assert run.code == 0, run.text[-3000:]
        assert (run.totals["success"], run.totals["hosts"] > 0) == (0, True)


@pytest.mark.parametrize("number", [0, 1])
def test_openais_client_gets_models_answers_and_streams(fleet: Fleet, number: int) -> None:
    balancer = fleet.balancers[number]
    transport = openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile=balancer.ca))
    with openai.OpenAI(base_url=balancer.base_url, api_key=key_of("demo"), http_client=transport) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        messages: Any = [{"role": "user", "content": "hello"}]
        whole = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4)
        assert whole.choices[0].message.content == "I am the stand-in "
        stream = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4, stream=True)
        assert [part.choices[0].delta.content for part in stream] == ["I ", "am ", "the ", "stand-in "]
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", messages=messages)


@pytest.mark.parametrize("change", ["upper", "longer", "shorter", "empty", "hash"])
def test_a_key_that_is_almost_right_is_wrong(balancer: Node, change: str) -> None:
    key = {
        "upper": "DEMO", "longer": "demo1", "shorter": "dem", "empty": "",
        "hash": entry("demo")["sha256"],
    }[change]  # fmt: skip
    answer = call(balancer, "/v1/models", key=key)
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.error["type"] == "authentication_error"


def test_the_key_may_come_as_x_api_key_and_an_old_one_beside_a_new_one(balancer: Node) -> None:
    assert call(balancer, "/v1/models", key="", **{"X-API-Key": key_of("demo")}).status == 200
    assert [call(balancer, "/v1/models", key=name).status for name in ("two-old", "two-new")] == [200, 200]


def test_an_expired_key_is_refused_without_a_run(balancer: Node) -> None:
    assert call(balancer, "/v1/models", key="late").status == 401
    # One that ends: HAProxy's own clock says when.
    sha256, path = entry("brief")["sha256"], "/etc/haproxy/quench/keys.map"
    now = int(balancer.root("date +%s"))
    ask(balancer, f"add map {path} {sha256} demo|{now + 600}|60000|100")
    try:
        assert call(balancer, "/v1/models", key="brief").status == 200
        ask(balancer, f"set map {path} {sha256} demo|{now + 5}|60000|100")
        assert wait(lambda: call(balancer, "/v1/models", key="brief").status == 401, 20)
    finally:
        ask(balancer, f"del map {path} {sha256}")


def test_a_keyring_of_any_size_comes_into_the_running_process(fleet: Fleet) -> None:
    balancer = fleet.balancers[0]
    path = "/etc/haproxy/quench/keys.map"
    script = shell_script(CHECKOUT / "roles" / "haproxy" / "maps.sh", "mend", path)
    before = balancer.root(f"cat {path}")
    many = "\n".join(f"{entry(f'client{number}')['sha256']} client{number}|1909008000|60|8" for number in range(2000))
    try:
        write(balancer, path, f"{before}\n{many}\n")
        balancer.root(script)
        assert len(ask(balancer, f"show map {path}").split("\n")) == len(before.splitlines()) + 2000
        assert call(balancer, "/v1/models").status == 200
    finally:
        write(balancer, path, f"{before}\n")
        balancer.root(script)
    assert len(ask(balancer, f"show map {path}").split("\n")) == len(before.splitlines())


def test_a_client_sees_and_uses_only_its_models(balancer: Node) -> None:
    assert json.loads(call(balancer, "/v1/models", key="other").body)["data"] == []
    answer = call(balancer, CHAT, key="other", body=question())
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


def test_too_many_requests_are_429_and_only_for_that_client(balancer: Node) -> None:
    answers = [call(balancer, "/v1/models", key="slow") for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert call(balancer, "/v1/models").status == 200
    # The refused ones do not count, or whoever goes on asking would be refused for ever.
    (line,) = [line for line in ask(balancer, "show table counts").splitlines() if "key=slow " in line]
    assert "gpc0_rate(60000)=3 " in f"{line} "


def test_too_many_requests_at_the_same_time_are_429(fleet: Fleet) -> None:
    balancer = fleet.balancers[0]
    with running(fleet.load(key=key_of("narrow"), streams=2, stream_words=150)) as tally:
        tally.wait(lambda tally: tally.flowing == 2)
        assert call(balancer, CHAT, key="narrow", body=question()).status == 429
        assert call(balancer, CHAT, body=question()).status == 200
    assert wait(lambda: call(balancer, CHAT, key="narrow", body=question()).status == 200, 10)


# A byte is a byte: 48 KiB fits HAProxy's buffer, the others go by way of the body router.
@pytest.mark.parametrize("size", [100, 40_000, 60_000, 70_000, 1_900_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_model_is_found_behind_a_prompt_of_any_size(balancer: Node, size: int, chunked: bool) -> None:
    answer = call(balancer, CHAT, chunked=chunked, body=question(messages=[{"role": "user", "content": "x" * size}]))
    assert answer.status == 200, answer.body
    assert json.loads(answer.body)["model"] == MODEL
    wrong = question(messages=[{"role": "user", "content": "x" * size}]) | {"model": "other"}
    answer = call(balancer, CHAT, chunked=chunked, body=wrong)
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


# HAProxy reads 20 levels, and the body router's JSON.parse 32.
@pytest.mark.parametrize("levels", [10, 25, 60])
def test_the_model_is_found_behind_tools_of_any_depth(balancer: Node, levels: int) -> None:
    tools = json.loads('{"model": ' * levels + '"other"' + "}" * levels)
    messages = [{"role": "user", "content": '"model": "other" é \\'}]
    for model, status in ((MODEL, 200), ("other", 404)):
        answer = call(balancer, CHAT, body={"tools": [tools], "messages": messages, "max_tokens": 1, "model": model})
        assert answer.status == status, answer.body


def test_a_stream_behind_a_large_prompt_comes_word_by_word(fleet: Fleet) -> None:
    balancer = fleet.balancers[0]
    context = ssl.create_default_context(cafile=balancer.ca)
    context.check_hostname = False
    connection = http.client.HTTPSConnection(balancer.address, context=context, timeout=30)
    body = json.dumps(question(messages=[{"role": "user", "content": "x" * 500_000}], stream=True, max_tokens=50))
    connection.request("POST", CHAT, body, {"Authorization": f"Bearer {key_of('demo')}"})
    response = connection.getresponse()
    response.readline()
    first = time.monotonic()
    text = response.read()
    connection.close()
    assert text.rstrip().endswith(b"data: [DONE]")
    # 49 words at 20 ms each come after the first.
    assert time.monotonic() - first > 0.7


def test_a_request_that_is_too_large_is_413_before_it_is_sent(balancer: Node) -> None:
    context = ssl.create_default_context(cafile=balancer.ca)
    context.check_hostname = False
    connection = http.client.HTTPSConnection(balancer.address, context=context, timeout=30)
    connection.putrequest("POST", CHAT)
    connection.putheader("Authorization", f"Bearer {key_of('demo')}")
    connection.putheader("Content-Length", str(2 * 1048576 + 1))
    connection.endheaders()
    answer = Answer(connection.getresponse())
    connection.close()
    assert (answer.status, answer.error["type"]) == (413, "invalid_request_error")


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b'{"model": 5}', b'{"model": {"a": 1}}', b'{"x": "model"}'])
def test_a_request_that_names_no_model_is_refused(balancer: Node, body: bytes) -> None:
    answer = call(balancer, CHAT, body=body or b" ")
    assert answer.status == (404 if body == b'{"model": 5}' else 400), answer.body
    assert answer.error["type"] == "invalid_request_error"


def test_a_model_that_is_named_twice_opens_no_other(balancer: Node) -> None:
    # HAProxy takes the first name, JSON readers the last. The engine answers to its own name alone, and the stand-in
    # does not look at it: so what counts is to which pool the request went.
    twice = b'{"model": "other", "messages": [], "max_tokens": 1, "model": "tiny-llama"}'
    assert call(balancer, CHAT, body=twice).status == 404


@pytest.mark.parametrize(
    "path",
    ["/", "/metrics", "/health", "/v1/models/", "//v1/models", "/V1/models", "/v1/%6dodels", "/v1/models?x=1",
     "/v1/load_lora_adapter", "/tokenize", "/v1/../v1/models", "/version", "/openapi.json"],
)  # fmt: skip
def test_what_is_not_listed_is_not_there(balancer: Node, path: str) -> None:
    assert call(balancer, path).status == 404
    assert call(balancer, path, key="").status == 404


def test_the_clients_own_words_on_who_it_is_are_dropped(fleet: Fleet) -> None:
    balancer = fleet.balancers[0]
    lies = {"X-Client-Id": "root", "X-Model": "other", "X-Request-Id": "mine", "Cookie": "a=b"}
    answer = call(balancer, CHAT, body=question(), **lies)
    assert answer.status == 200
    assert answer.headers["X-Request-Id"] != "mine"
    assert set(json.loads(answer.body)["stand_in"]["headers"]) == {
        "host",
        "content-type",
        "content-length",
        "x-request-id",
    }
    line = next(line for line in log(balancer) if line["request_id"] == answer.headers["X-Request-Id"])
    assert (line["client"], line["model"], line["path"], line["status"]) == ("demo", MODEL, CHAT, 200)
    node = next(node for node in fleet.nodes if node.name == line["node"])
    same = [json.loads(text) for text in node.root("tail -n 50 /var/log/nginx/access.json").splitlines()]
    assert [(row["client"], row["model"]) for row in same if row["request_id"] == line["request_id"]] == [
        ("demo", MODEL)
    ]


def test_a_long_path_does_not_hide_who_asked(balancer: Node) -> None:
    name = call(balancer, "/" + "a" * 6000, key="").headers["X-Request-Id"]
    (line,) = [line for line in log(balancer) if line.get("request_id") == name]
    assert (line["status"], line["path"]) == (404, "/" + "a" * 199)


def test_a_large_request_by_http_2_needs_no_length(fleet: Fleet) -> None:
    balancer = fleet.balancers[0]
    body = json.dumps(question(messages=[{"role": "user", "content": "x" * 100_000}]))
    words = [
        "curl",
        "--silent",
        "--http2",
        "--cacert",
        balancer.ca,
        "--resolve",
        f"{fleet.name}:443:{balancer.address}",
    ]
    words += ["--header", f"Authorization: Bearer {key_of('demo')}", "--header", "Content-Type: application/json"]
    words += ["--upload-file", "-", "--request", "POST", "--write-out", "\n%{http_version} %{http_code}"]
    done = subprocess.run(
        [*words, f"https://{fleet.name}{CHAT}"], input=body, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stdout.splitlines()[-1] == "2 200", done.stdout


def log(balancer: Node) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in balancer.root("grep '^{' /var/log/haproxy/access.json | tail -n 200").splitlines()
    ]


def test_logs_hold_no_key_and_no_prompt(fleet: Fleet) -> None:
    large = [{"role": "user", "content": "a question nobody may log" * 20_000}]
    for body, chunked in ((question(), False), (question(messages=large), False), (question(messages=large), True)):
        name = call(fleet.balancers[0], CHAT, body=body, chunked=chunked).headers["X-Request-Id"]
        assert name in {line["request_id"] for line in log(fleet.balancers[0])}
    for host in (*fleet.balancers, *fleet.nodes):
        text = host.root("cat /var/log/haproxy/* /var/log/nginx/* 2>/dev/null; journalctl --output cat")
        assert "a question nobody may log" not in text and key_of("demo") not in text


def test_a_node_lets_balancers_in_and_nobody_else(fleet: Fleet) -> None:
    node, balancer = fleet.nodes[0], fleet.balancers[0]
    # The controller is in a zone that may reach the port, and has no certificate; nor does its key help.
    assert call(node, CHAT, body=question()).status == 400
    folder = balancer.lab.folder / "ca"
    certificate = str(folder / f"lb1.{balancer.lab.name}.test.crt")
    lines = {"X-Client-Id": "demo", "X-Model": MODEL}
    assert call(node, CHAT, key="", body=question(), certificate=certificate, **lines).status == 200
    assert (
        call(node, CHAT, key="", body=question(), certificate=certificate, **{**lines, "X-Model": "other"}).status
        == 404
    )
    # A certificate of the same CA and of another name.
    other = str(folder / f"{node.address}.crt")
    assert call(node, CHAT, key="", body=question(), certificate=other, **lines).status in (400, 401)


def test_tls_1_2_is_refused(balancer: Node) -> None:
    context = ssl.create_default_context(cafile=balancer.ca)
    context.check_hostname = False
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    connection = http.client.HTTPSConnection(balancer.address, context=context, timeout=10)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connection.request("GET", "/v1/models")


def test_the_log_goes_on_at_its_end_after_a_restart_and_a_rotation(fleet: Fleet, balancer: Node) -> None:
    log = "/var/log/haproxy/access.json"

    def last_path(path: str) -> str:
        call(balancer, path)
        return balancer.root(f"sleep 0.5; tail -n 1 {log}")

    before = int(balancer.root(f"wc -l <{log}"))
    # One that came by way of the body router, whose idle connection HAProxy waits for before it ends.
    large = question(messages=[{"role": "user", "content": "x" * 100_000}])
    assert call(balancer, CHAT, body=large).status == 200
    began = time.monotonic()
    balancer.root("systemctl restart haproxy.service")
    assert time.monotonic() - began < 30
    assert wait(lambda: call(balancer, "/v1/models").status == 200, 10)
    assert "after-restart" in last_path("/after-restart")
    assert int(balancer.root(f"wc -l <{log}")) > before
    balancer.root("logrotate --force /etc/logrotate.d/haproxy")
    assert "after-rotation" in last_path("/after-rotation")
    # A writer that does not go to the end leaves a hole, which reads as zeros, where the lines before it were.
    assert balancer.root(f"tr -d -c '\\000' <{log} | wc -c") == "0"
    assert all_up(fleet)


def test_prometheus_finds_counters(balancer: Node) -> None:
    text = call(balancer, "/metrics", key="", port=8405).body.decode()
    assert 'haproxy_server_status{proxy="pool_tiny-llama",server="node1",state="UP"} 1' in text


def test_a_node_whose_engine_does_not_answer_is_taken_out_though_its_ports_are_open(fleet: Fleet) -> None:
    balancer, node = fleet.balancers[0], fleet.nodes[2]
    # It takes connections and says nothing: a GPU that hangs.
    process = node.root("systemctl show --property MainPID --value vllm@tiny-llama.service")
    node.root(f"kill -STOP {process}")
    try:
        assert wait(lambda: servers(balancer)[node.name]["status"].startswith("DOWN"), 60)
        assert call(balancer, CHAT, body=question()).status == 200
    finally:
        node.root(f"kill -CONT {process}")
    assert wait(lambda: servers(balancer)[node.name]["status"] == "UP", 30)


def test_a_drained_node_gets_nothing_more_and_finishes_what_it_has(fleet: Fleet) -> None:
    balancer = fleet.balancers[0]
    with running(fleet.load(key=key_of("demo"), streams=6, stream_words=150, plain=2)) as tally:
        tally.wait(lambda tally: tally.flowing >= 6)
        ask(balancer, "set server pool_tiny-llama/node1 state drain")
        assert wait(lambda: servers(balancer)["node1"]["scur"] == "0", 20)
        before = int(servers(balancer)["node1"]["stot"])
        time.sleep(2)
        assert int(servers(balancer)["node1"]["stot"]) == before
        ask(balancer, "set server pool_tiny-llama/node1 state ready")
        assert wait(lambda: int(servers(balancer)["node1"]["stot"]) > before, 20)
    assert lost(tally) == []
    assert tally.count()["ok"] > 10


def test_a_reload_loses_nothing_and_what_was_drained_stays_drained(fleet: Fleet) -> None:
    balancer = fleet.balancers[0]
    ask(balancer, "set server pool_tiny-llama/node2 state drain")
    with running(fleet.load(key=key_of("demo"), streams=6, stream_words=200, plain=4)) as tally:
        tally.wait(lambda tally: tally.flowing >= 6)
        for _ in range(3):
            balancer.root("systemctl reload haproxy.service")
            time.sleep(1)
    assert lost(tally) == []
    assert servers(balancer)["node2"]["status"].startswith("DRAIN")
    # Nor does a stop and a start bring it back, as a boot has them.
    balancer.root("systemctl restart haproxy.service")
    assert wait(lambda: servers(balancer)["node2"]["status"].startswith("DRAIN"), 10)
    ask(balancer, "set server pool_tiny-llama/node2 state ready")
    assert wait(lambda: all(row["status"] == "UP" for row in servers(balancer).values()), 30)


def test_requests_move_from_a_node_to_others_by_weight(fleet: Fleet, tmp_path: Path) -> None:
    """As from blue to green, and back."""
    balancer, green = fleet.balancers[0], {"node1", "node3"}
    with running(fleet.load(key=key_of("demo"), streams=6, stream_words=150, plain=2)) as tally:
        for weights, wanted in (({"node1": 0, "node3": 0}, {"node2"}), ({"node2": 0}, green), ({}, green | {"node2"})):
            changes = {name: {"nginx_weight": weight} for name, weight in weights.items()}
            inventory = write_inventory(tmp_path, {**fleet.changes, **changes})
            run = run_pyinfra(balancer, "-y", "--limit", "lb1", inventory=inventory, deploy=BALANCER_DEPLOY)
            assert run.code == 0, run.text[-3000:]
            before = {name: int(row["stot"]) for name, row in servers(balancer).items()}
            time.sleep(5)
            after = {name: int(row["stot"]) for name, row in servers(balancer).items()}
            assert {name for name in after if after[name] > before[name]} == wanted
    assert lost(tally) == []


def test_a_standby_node_gets_requests_when_no_other_can(fleet: Fleet, tmp_path: Path) -> None:
    balancer, standby = fleet.balancers[0], fleet.nodes[2].name
    others = [node.name for node in fleet.nodes if node.name != standby]

    def run(folder: str, changes: dict[str, Any]) -> None:
        (tmp_path / folder).mkdir()
        inventory = write_inventory(tmp_path / folder, {**fleet.changes, **changes})
        done = run_pyinfra(balancer, "-y", "--limit", "lb1", inventory=inventory, deploy=BALANCER_DEPLOY)
        assert done.code == 0, done.text[-3000:]

    def served() -> set[str]:
        before = {name: int(row["stot"]) for name, row in servers(balancer).items()}
        assert [call(balancer, CHAT, body=question()).status for _ in range(9)] == [200] * 9
        return {name for name, row in servers(balancer).items() if int(row["stot"]) > before[name]}

    run("standby", {standby: {"nginx_standby": True}})
    try:
        assert standby not in served()
        for name in others:
            ask(balancer, f"set server pool_tiny-llama/{name} state maint")
        assert served() == {standby}
    finally:
        for name in others:
            ask(balancer, f"set server pool_tiny-llama/{name} state ready")
        run("again", {})
    assert wait(lambda: all(row["status"] == "UP" for row in servers(balancer).values()), 30)


@pytest.mark.parametrize("number", [0, 1])
def test_haproxy_takes_the_balance_by_session(fleet: Fleet, number: int) -> None:
    # The lines of the template in the place of the one that this fleet has.
    balancer, path = fleet.balancers[number], "/etc/haproxy/session.cfg"
    lines = ["balance hash req.hdr(x-session-id)", "hash-type consistent", "hash-balance-factor 150"]
    text = balancer.root("cat /etc/haproxy/haproxy.cfg")
    assert text.count("    balance leastconn\n") == 1
    write(balancer, path, text.replace("balance leastconn\n", "\n    ".join([*lines, ""])) + "\n")
    try:
        balancer.root(f"cd / && setpriv --reuid=haproxy --regid=haproxy --init-groups haproxy -c -q -f {path}")
    finally:
        balancer.root(f"rm {path}")


def test_new_certificates_of_the_balancers_cost_no_request(
    fleet: Fleet, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = fleet.balancers[0].lab.folder / "ca"
    with running(fleet.load(key=key_of("demo"), streams=6, stream_words=300, plain=4)) as tally:
        tally.wait(lambda tally: tally.flowing >= 6)
        before = serial(fleet.balancers[0])
        for lb in fleet.balancers:
            ca.issue(folder, [lb.address, f"{lb.name}.{lb.lab.name}.test", fleet.name])
            ca.issue(folder, [f"{lb.name}.{lb.lab.name}.test"], client=True)
        for run in provision(fleet, tmp_path_factory.mktemp("certificates")):
            assert run.code == 0, run.text[-3000:]
        assert serial(fleet.balancers[0]) != before
        assert wait(lambda: all(row["status"] == "UP" for row in servers(fleet.balancers[0]).values()), 30)
        time.sleep(2)
    assert lost(tally) == []
    assert tally.count()["ok"] > 20


def serial(balancer: Node) -> int:
    """Of the certificate that a balancer shows."""
    pem = ssl.get_server_certificate((balancer.address, 443))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def test_a_node_that_is_killed_ends_what_it_had_and_nothing_else(fleet: Fleet) -> None:
    balancer, node = fleet.balancers[0], fleet.nodes[2]
    try:
        # The client itself is patient: what ends within 40 s is ended by the balancer.
        with running(fleet.load(key=key_of("demo"), streams=9, stream_words=200, plain=6, timeout=60)) as tally:
            tally.wait(lambda tally: tally.flowing >= 9)
            had = int(servers(balancer)[node.name]["scur"])
            labs.switch_off(node.lab, node.name)
            gone = time.monotonic()
            assert wait(lambda: servers(balancer)[node.name]["status"].startswith("DOWN"), 15)
            # Three checks, with 2 s for a connection that nobody takes.
            assert time.monotonic() - gone < 12
            time.sleep(2)
    finally:
        labs.switch_on(node.lab, node.name)
    # What had been sent to it may end with it. What came later went elsewhere, and no other stream was cut.
    assert [str(request) for request in tally.bad if request.start > gone] == []
    assert len([request for request in tally.bad if request.kind == "stream"]) <= had
    assert [str(request) for request in tally.bad if request.end > gone + 40] == []
    assert [str(request) for request in tally.requests if request.outcome == "refused"] == []
    assert wait(lambda: servers(balancer)[node.name]["status"] == "UP", 60)


def test_where_no_node_is_up_the_answer_is_503_and_says_when_to_come_back(fleet: Fleet) -> None:
    balancer = fleet.balancers[0]
    for node in fleet.nodes:
        ask(balancer, f"set server pool_tiny-llama/{node.name} state maint")
    answer = call(balancer, CHAT, body=question())
    for node in fleet.nodes:
        ask(balancer, f"set server pool_tiny-llama/{node.name} state ready")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert answer.error["type"] == "server_error"
    assert wait(lambda: all(row["status"] == "UP" for row in servers(balancer).values()), 30)


def test_a_full_house_lets_some_wait_and_tells_the_others_when_to_come_back(fleet: Fleet) -> None:
    balancer = fleet.balancers[0]
    limits = {name: row["slim"] for name, row in servers(balancer).items()}
    for name in limits:
        ask(balancer, f"set maxconn server pool_tiny-llama/{name} 1")
    try:
        # One for each node, four that wait, and two who come again when they are told to.
        with running(fleet.load(key=key_of("demo"), streams=9, stream_words=150, timeout=60)) as tally:
            tally.wait(lambda tally: tally.flowing == 3 and tally.count()["refused"] == 2)
            answer = call(balancer, CHAT, body=question())
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
            assert "busy" in answer.error["message"]
    finally:
        for name, limit in limits.items():
            ask(balancer, f"set maxconn server pool_tiny-llama/{name} {limit}")
    assert [str(request) for request in tally.bad] == []


def longest_silence(fleet: Fleet, act: Callable[[], object]) -> float:
    """Seconds in which the shared address answers nobody who connects anew, from when something is done to it."""
    address = (fleet.balancers[0].lab.shared_address, 443)
    context = ssl.create_default_context(cafile=fleet.balancers[0].ca)
    context.check_hostname = False
    answered: list[float] = [time.monotonic()]
    done = threading.Event()

    def knock() -> None:
        while not done.is_set():
            with suppress(OSError), socket.create_connection(address, timeout=0.2) as plain:
                plain.settimeout(0.5)
                with context.wrap_socket(plain) as secure:
                    secure.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    if secure.recv(12).startswith(b"HTTP/1.1 404"):
                        answered.append(time.monotonic())
            time.sleep(0.02)

    thread = threading.Thread(target=knock)
    thread.start()
    time.sleep(1)
    act()
    time.sleep(6)
    done.set()
    thread.join()
    assert len(answered) > 50
    return max(later - earlier for earlier, later in itertools.pairwise([*answered, time.monotonic()]))


def holder(fleet: Fleet) -> Node:
    """The balancer that has the shared address."""
    found = [lb for lb in fleet.balancers if lb.lab.shared_address in lb.root("ip -oneline address show dev eth0")]
    assert len(found) == 1, [lb.name for lb in found]
    return found[0]


@pytest.mark.alone
def test_the_address_moves_within_3_seconds_when_haproxy_ends(fleet: Fleet) -> None:
    first = holder(fleet)
    assert (
        longest_silence(fleet, lambda: first.root("systemctl kill --signal=KILL haproxy; systemctl stop haproxy")) < 3
    )
    assert holder(fleet).name != first.name
    first.root("systemctl start haproxy.service")


@pytest.mark.alone
def test_the_address_moves_within_3_seconds_when_a_balancer_loses_its_power(fleet: Fleet) -> None:
    first = holder(fleet)
    assert longest_silence(fleet, lambda: labs.switch_off(first.lab, first.name)) < 3
    labs.switch_on(first.lab, first.name)
    assert wait(lambda: first.root("systemctl is-system-running", check=False) == "running", 60)
    assert holder(fleet).name != first.name
