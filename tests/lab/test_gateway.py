"""nginx in front of an engine: keys, limits, logs, streaming. The engine is the stand-in."""

from __future__ import annotations

import datetime
import hashlib
import json
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import MODEL, Node, lab_data, run_pyinfra, write_inventory

FAR = "2099-01-01"
CHAT = "/v1/chat/completions"


def key_entry(key: str, expires: str = FAR) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(key.encode()).hexdigest(), "expires": expires}


def body(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "a question nobody may log"}], **more}


@pytest.fixture(scope="module")
def gateway(stand_in_node: Node, tmp_path_factory: pytest.TempPathFactory) -> Node:
    """The host with a keyring of several clients."""
    clients = {
        "demo": lab_data(stand_in_node)["nginx_clients"]["demo"],
        "slow": {"keys": [key_entry("sk-slow")], "requests_per_minute": 1, "burst": 2},
        "narrow": {"keys": [key_entry("sk-narrow")], "concurrent": 2, "requests_per_minute": 6000, "burst": 50},
        "late": {"keys": [key_entry("sk-late", "2020-01-01")]},
        "other": {"keys": [key_entry("sk-other")], "models": []},
    }
    folder = tmp_path_factory.mktemp("gateway")
    run = run_pyinfra(
        stand_in_node,
        "-y",
        inventory=write_inventory(folder, {"*": {"nginx_clients": clients, "nginx_body_mebibytes": 1}}),
    )
    assert run.code == 0, run.text[-3000:]
    return stand_in_node


def log_lines(node: Node) -> list[dict[str, Any]]:
    return [json.loads(line) for line in node.root("cat /var/log/nginx/access.json").splitlines()]


def test_the_key_may_come_as_bearer_or_as_x_api_key(gateway: Node) -> None:
    assert gateway.request(CHAT, key=gateway.key, body=body())[0] == 200
    answer = gateway.root(
        f"curl -sk -o /dev/null -w '%{{http_code}}' -H 'X-API-Key: {gateway.key}' https://127.0.0.1/v1/models"
    )
    assert answer == "200"


@pytest.mark.parametrize("change", ["upper", "longer", "shorter", "empty", "hash"])
def test_a_key_that_is_almost_right_is_wrong(gateway: Node, change: str) -> None:
    key = {
        "upper": gateway.key.upper(), "longer": gateway.key + "a", "shorter": gateway.key[:-1], "empty": "",
        "hash": hashlib.sha256(gateway.key.encode()).hexdigest(),
    }[change]  # fmt: skip
    status, headers, text = gateway.request("/v1/models", key=key)
    assert status == 401
    assert headers["Content-Type"] == "application/json"
    assert json.loads(text)["error"]["type"] == "authentication_error"


def test_an_expired_key_is_refused_without_a_run(gateway: Node) -> None:
    assert gateway.request("/v1/models", key="sk-late")[0] == 401


def test_a_client_sees_and_uses_only_its_models(gateway: Node) -> None:
    _, _, text = gateway.request("/v1/models", key="sk-other")
    assert json.loads(text)["data"] == []
    status, _, text = gateway.request(CHAT, key="sk-other", body=body())
    assert (status, json.loads(text)["error"]["code"]) == (404, "model_not_found")


def test_too_many_requests_are_429_and_only_for_that_client(gateway: Node) -> None:
    answers = [gateway.request("/v1/models", key="sk-slow") for _ in range(6)]
    assert [status for status, _, _ in answers].count(200) == 3  # one, and a burst of two
    refused = [headers for status, headers, _ in answers if status == 429]
    assert len(refused) == 3
    assert refused[0]["Retry-After"] == "1"
    assert gateway.request("/v1/models", key=gateway.key)[0] == 200


def test_too_many_requests_at_the_same_time_are_429(gateway: Node) -> None:
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(gateway.request(CHAT, key="sk-narrow", body=body(max_tokens=200))[0])

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 200, 429, 429, 429]


def test_the_clients_headers_do_not_reach_the_engine(gateway: Node) -> None:
    status, _, text = gateway.request(CHAT, key=gateway.key, body=body(max_tokens=1))
    assert status == 200
    seen = set(json.loads(text)["stand_in"]["headers"])
    assert seen == {"host", "content-type", "content-length", "x-request-id"}


def test_a_request_that_is_too_large_is_413(gateway: Node) -> None:
    status, _, text = gateway.request(CHAT, key=gateway.key, body=body(pad="x" * (1 << 20)))
    assert (status, json.loads(text)["error"]["type"]) == (413, "invalid_request_error")


def test_a_request_just_below_the_limit_is_answered(gateway: Node) -> None:
    """The model's name stands last, as the official client may write it."""
    text = json.dumps({"pad": "x" * 1_000_000, **body(max_tokens=1)})
    assert gateway.request(CHAT, key=gateway.key, body=text.encode())[0] == 200


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'"x"', b"null", b'{"model": 1}', b'{"model": "constructor"}'])
def test_what_is_no_request_is_refused(gateway: Node, text: bytes) -> None:
    assert gateway.request(CHAT, key=gateway.key, body=text, method="POST")[0] in (400, 404)


def test_a_wrong_method_is_404(gateway: Node) -> None:
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH"):
        assert gateway.request(CHAT, key=gateway.key, method=method)[0] == 404


def test_tls_1_2_is_refused(gateway: Node) -> None:
    said = gateway.root("curl -sk --tls-max 1.2 https://127.0.0.1/v1/models; echo $?", check=False)
    assert said == "35"  # curl(1): the TLS handshake failed


def test_the_log_says_who_and_what_but_no_prompt_key_or_query(gateway: Node) -> None:
    marker = "canaryquery123"
    assert gateway.request(f"/v1/models?secret={marker}", key=gateway.key)[0] == 404
    gateway.request(CHAT, key=gateway.key, body=body(max_tokens=1))
    time.sleep(0.2)
    text = gateway.root("cat /var/log/nginx/access.json /var/log/nginx/error.log")
    assert marker not in text
    assert "a question nobody may log" not in text
    assert gateway.key not in text and "sk-slow" not in text
    line = log_lines(gateway)[-1]
    assert line["client"] == "demo" and line["model"] == MODEL and line["status"] == 200
    assert line["bytes_out"] > 0 and len(line["request_id"]) == 32 and line["path"] == CHAT


def test_a_key_is_revoked_and_another_added_without_a_reload(gateway: Node, tmp_path: Path) -> None:
    inventory = write_inventory(
        tmp_path, {"*": {"nginx_clients": {"demo": {"keys": [key_entry("sk-new")], "burst": 20}}}}
    )
    workers = "pgrep -P $(systemctl show -p MainPID --value nginx.service) | sort"
    # First the limits, which are nginx's own and need a reload; then the key alone.
    both = {"keys": [lab_data(gateway)["nginx_clients"]["demo"]["keys"][0], key_entry("sk-new")], "burst": 20}
    folder = tmp_path / "both"
    folder.mkdir()
    assert (
        run_pyinfra(gateway, "-y", inventory=write_inventory(folder, {"*": {"nginx_clients": {"demo": both}}})).code
        == 0
    )
    assert gateway.request("/v1/models", key=gateway.key)[0] == 200
    assert gateway.request("/v1/models", key="sk-new")[0] == 200
    before = gateway.root(workers)
    run = run_pyinfra(gateway, "-y", "--json", inventory=inventory)
    assert run.code == 0 and run.totals["success"] == 1
    assert gateway.root(workers) == before
    assert gateway.request("/v1/models", key=gateway.key)[0] == 401
    assert gateway.request("/v1/models", key="sk-new")[0] == 200
    # Back to the lab's own keyring, for the tests that follow.
    assert run_pyinfra(gateway, "-y").code == 0


def test_logs_go_on_after_rotation_and_old_ones_are_kept_by_age(gateway: Node) -> None:
    gateway.request("/v1/models", key=gateway.key)
    gateway.root("cd /var/log/nginx && for days in 300 400; do touch -d \"-$days days\" "
                 "access.json-$(date -d \"-$days days\" +%Y%m%d-%s).gz; done")  # fmt: skip
    gateway.root("logrotate --force /etc/logrotate.d/nginx")
    time.sleep(0.5)
    assert log_lines(gateway) == [] or len(log_lines(gateway)) < 3
    before = len(log_lines(gateway))
    gateway.request("/v1/models", key=gateway.key)
    time.sleep(0.2)
    assert len(log_lines(gateway)) == before + 1, "nginx writes to the new file"
    names = gateway.root("ls /var/log/nginx")
    today = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d")
    assert f"access.json-{today}" in names
    kept = gateway.root("find /var/log/nginx -name 'access.json-*' -mtime +1").splitlines()
    # Six years, as the lab's group_data has it: nothing is old enough. With a year, one goes.
    assert len(kept) == 2
    time.sleep(1.1)  # a rotated file is named after the second
    gateway.root("sed 's/maxage .*/maxage 365/' /etc/logrotate.d/nginx >/run/year && logrotate --force /run/year")
    kept = gateway.root("find /var/log/nginx -name 'access.json-*' -mtime +1").splitlines()
    assert len(kept) == 1


def words(gateway: Node, count: int) -> Iterator[tuple[float, bytes]]:
    """The pieces of a streamed answer, as they come, and when."""
    context = ssl.create_default_context(cafile=gateway.ca)
    request = urllib.request.Request(
        f"https://{gateway.address}{CHAT}",
        data=json.dumps(body(max_tokens=count, stream=True)).encode(),
        headers={"Authorization": f"Bearer {gateway.key}"},
    )
    with urllib.request.urlopen(request, context=context, timeout=60) as answer:
        for line in answer:
            if line.startswith(b"data: "):
                yield time.monotonic(), line


@pytest.mark.parametrize("command", ["systemctl reload nginx.service", "systemctl stop nginx.service"])
def test_an_answer_that_has_begun_survives_a_reload_and_a_stop_of_nginx(gateway: Node, command: str) -> None:
    answer = words(gateway, 200)
    next(answer)
    with ThreadPoolExecutor(1) as pool:
        begun = time.monotonic()
        ending = pool.submit(gateway.root, command)
        rest = list(answer)
        ending.result(timeout=60)
    gateway.root("systemctl start nginx.service")
    assert rest[-1][0] > begun + 1, "it was over before the command"
    assert len(rest) == 200 and rest[-1][1].rstrip().endswith(b"[DONE]")


def test_each_word_goes_out_as_it_comes(gateway: Node) -> None:
    """The stand-in takes 20 ms for a word: a proxy that buffers would hold the first until the last."""
    arrivals = [at for at, _ in words(gateway, 100)]
    assert len(arrivals) == 101
    assert arrivals[-1] - arrivals[0] > 1.5


def test_a_header_that_is_too_large_is_refused_in_the_form_of_all_errors(gateway: Node) -> None:
    status, _, text = gateway.request("/v1/models", key="x" * 40_000)
    assert (status, json.loads(text)["error"]["type"]) == (400, "invalid_request_error")
