"""Mistakes that are common in configurations of this kind, each kept out of the rendered files by a test."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from quench import Certificate, ManagedFile
from quench.contracts import HEALTH_CLIENT
from roles.logrotate import LogrotateSettings
from roles.logrotate import files as logrotate_files
from roles.nginx import NginxSettings
from roles.nginx import files as nginx_files
from roles.nginx.files import LOGS
from roles.vllm import VllmSettings
from roles.vllm import files as vllm_files


@pytest.fixture(params=["debian-12", "debian-13"])
def platform(request):
    return request.param


def contents(managed):
    return {file.dest: file.content for file in managed if isinstance(file, ManagedFile)}


def directives(text, context=()):
    """Each directive of an nginx configuration: the blocks around it, and its words."""
    found, words, blocks = [], [], list(context)
    for token in re.findall(r"""#[^\n]*|"(?:\\.|[^"])*"|'(?:\\.|[^'])*'|[{};]|[^\s{};]+""", text):
        if token.startswith("#"):
            continue
        if token == "{":
            blocks.append(" ".join(words).replace(" )", ")"))
            words = []
        elif token == "}":
            blocks.pop()
        elif token == ";":
            found.append((tuple(blocks), words))
            words = []
        else:
            words.append(token)
    assert not blocks
    return found


# A check that makes sense for a node of its own and for one behind balancers; without it, for the former.
both = pytest.mark.parametrize("nginx_tree", ["alone", "balanced"], indirect=True)


@pytest.fixture
def nginx_tree(request, nginx_data, engines, platform, make_client, pki):
    clients = {
        "team-a": make_client("key-of-team-a", requests_per_minute=30, burst=0, concurrent=2),
        "team-b": make_client("key-of-team-b"),
    }
    guard = {"nginx_clients": clients}
    if getattr(request, "param", "alone") == "balanced":
        guard = {"nginx_clients": {}, "nginx_balancers": ["lb1.example.org"], "nginx_balancer_ca": f"{pki}/ca.crt"}
    settings = NginxSettings.load("node1", nginx_data | {"platform": platform} | guard)
    return contents(nginx_files(settings, engines, Certificate()))


@pytest.fixture
def nginx(nginx_tree):
    return directives(nginx_tree["/etc/nginx/nginx.conf"])


@pytest.fixture
def values(nginx):
    """All values of a directive, wherever it stands."""
    return lambda name: [" ".join(words[1:]) for _, words in nginx if words[0] == name]


def where(nginx, name):
    return {blocks for blocks, words in nginx if words[0] == name}


def proxying(nginx):
    """The directives of each place that passes requests on."""
    places = where(nginx, "proxy_pass")
    assert places
    return [{w[0]: w[1:] for b, w in nginx if b == place and w[0] != "proxy_set_header"} for place in places]


# nginx


def test_limit_zones_stand_where_nginx_allows_them(nginx):
    assert where(nginx, "limit_req_zone") == where(nginx, "limit_conn_zone") == {("http",)}


@both
def test_tls_1_3_gets_no_list_of_ciphers_that_it_does_not_know(values):
    assert values("ssl_protocols") == ["TLSv1.3"]
    assert values("ssl_ciphers") == []


@both
def test_http2_is_asked_for_in_the_words_of_the_installed_nginx(values, platform):
    with_parameter = [address.endswith(" http2") for address in values("listen")]
    # From nginx 1.25.1 on the parameter is deprecated; before, the directive does not exist.
    if platform == "debian-12":
        assert all(with_parameter)
        assert values("http2") == []
    else:
        assert not any(with_parameter)
        assert values("http2") == ["on"]


@both
def test_no_directive_stands_that_only_a_newer_openssl_or_nginx_knows(values):
    for name in ("ssl_ecdh_curve", "ssl_stapling", "ssl_conf_command", "ssl_reject_handshake", "quic_retry"):
        assert values(name) == []


def test_keys_are_not_compared_by_a_map_which_would_ignore_their_case(nginx):
    rows = [words for blocks, words in nginx if blocks[-1:] and blocks[-1].startswith("map ")]
    assert rows
    # Text is compared without regard to case, and long text needs a larger bucket; "~" is exact.
    assert [words[0] for words in rows if not words[0].startswith('"~^')] == ["default"]
    assert not any("~*" in " ".join(words) for _, words in nginx)


def test_a_client_may_send_its_key_in_either_header(nginx_tree):
    script = nginx_tree["/etc/nginx/quench/gateway.js"]
    assert "headersIn['Authorization']" in script
    assert "headersIn['X-API-Key']" in script


@both
def test_every_refusal_is_json_and_says_so(nginx, values):
    assert values("default_type") == ["application/json"]
    bodies = {
        words[1]: words[2].strip("'") for blocks, words in nginx if words[0] == "return" and "@error_" in blocks[-1]
    }
    assert {"401", "404", "413", "429", "502", "504"} <= set(bodies)
    for body in bodies.values():
        assert json.loads(body)["error"]["message"]


@both
def test_every_error_page_leads_to_an_answer_of_the_same_status(nginx, values):
    answers = {(b[-1].split()[1], w[1]) for b, w in nginx if w[0] == "return" and "@error_" in b[-1]}
    # nginx's own codes become that of the answer: "=".
    pages = {page for page in values("error_page") if " = " not in page}
    assert {(page.split()[1], page.split()[0]) for page in pages} == answers
    assert set(values("error_page")) - pages == {"494 495 496 497 = @error_400"}


@both
def test_an_error_has_all_headers_that_other_answers_have(nginx):
    # add_header in a location takes away those of the server around it.
    server = {w[1] for b, w in nginx if w[0] == "add_header" and b == ("http", "server")}
    assert server
    for place in where(nginx, "add_header"):
        assert server <= {w[1] for b, w in nginx if w[0] == "add_header" and b == place}, place


@both
def test_no_key_of_a_client_reaches_the_engine(nginx):
    for place in proxying(nginx):
        assert place["proxy_pass_request_headers"] == ["off"]
    sent = {" ".join(words[1:]) for _, words in nginx if words[0] == "proxy_set_header"}
    assert sent
    # A balancer makes the id of a request itself.
    assert not any("$http_" in header for header in sent - {"X-Request-Id $http_x_request_id"})


@both
def test_the_engine_gets_no_host_that_the_client_chose(nginx):
    hosts = {words[2] for _, words in nginx if words[0] == "proxy_set_header" and words[1].lower() == "host"}
    assert len(hosts) == 1
    assert not any("$" in host for host in hosts)


@both
def test_no_address_that_the_client_names_is_believed(nginx_tree):
    text = nginx_tree["/etc/nginx/nginx.conf"]
    for word in ("$proxy_add_x_forwarded_for", "$http_x_forwarded_for", "$http_x_real_ip", "real_ip_header"):
        assert word not in text


def test_no_key_stands_in_any_file_and_its_hash_in_one_that_is_not_open(nginx_data, nginx_tree, engines):
    settings = NginxSettings.load("node1", nginx_data)
    sha256 = settings.clients["team-a"].keys[0].sha256
    holders = [file for file in nginx_files(settings, engines, Certificate()) if isinstance(file, ManagedFile)]
    holders = [file for file in holders if sha256 in file.content]
    assert [(file.dest, file.mode & 0o007) for file in holders] == [("/etc/nginx/quench/keyring.json", 0)]
    assert not any("key-of-team-a" in content for content in nginx_tree.values())


@both
def test_no_port_is_open_without_tls(values):
    listen = values("listen")
    assert listen
    assert all("ssl" in address.split() for address in listen)


def test_an_engine_is_reached_through_the_script_that_checks_the_model_and_not_by_a_path(nginx):
    assert all(blocks[-1].startswith("location @") for blocks in where(nginx, "proxy_pass"))


@pytest.fixture
def listed(nginx):
    """Whether the allow-list lets a request pass."""
    rows = [words for blocks, words in nginx if blocks[-1:] and "$listed" in blocks[-1]]
    patterns = [re.compile(row[0].strip('"')[1:]) for row in rows if row[0] != "default" and row[1] == "1"]
    return lambda request: any(pattern.search(request) for pattern in patterns)


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /v1/models",
        "POST /v1/chat/completions",
        "POST /v1/completions",
        "POST /v1/responses",
    ],
)
def test_what_clients_need_is_listed(listed, request_line):
    assert listed(request_line)


@both
@pytest.mark.parametrize(
    "request_line",
    [
        "POST /v1/chat/completions?x=1",
        # The model here generates.
        "POST /v1/embeddings",
        # They answer without a key, whatever the engine is told of keys.
        "GET /metrics",
        "GET /version",
        "GET /load",
        "GET /health",
        "GET /docs",
        "GET /openapi.json",
        "POST /tokenize",
        "POST /invocations",
        "POST /pause",
        "POST /sleep",
        "POST /collective_rpc",
        "POST /scale_elastic_ep",
        # They begin like what is allowed.
        "POST /v1/load_lora_adapter",
        "POST /v1/unload_lora_adapter",
        "POST /v1/chat/completions/",
        "POST /v1/chat/completions/render",
        "POST /v1/completionsX",
        "GET /v1/responses/resp_1",
        # Another spelling, another method.
        "POST //v1/completions",
        "POST /v1/../v1/completions",
        "POST /v1/%63ompletions",
        "POST /V1/completions",
        "POST /x/v1/completions",
        "post /v1/completions",
        "GET /v1/completions",
        "OPTIONS /v1/completions",
        "DELETE /v1/models",
        "XPOST /v1/completions",
        # The management of models in Ollama.
        "POST /api/pull",
        "DELETE /api/delete",
        "POST /api/generate",
    ],
)
def test_what_an_engine_offers_beyond_that_is_not_listed(listed, request_line):
    assert not listed(request_line)


def test_what_is_not_listed_is_refused_before_it_is_known_whether_the_key_is_good(nginx):
    server = [blocks[-1] for blocks, words in nginx if words[0] == "return" and blocks[-1].startswith("if ")]
    assert server == ["if ($listed = 0)", 'if ($client = "")']
    assert [words[1] for blocks, words in nginx if blocks[-1:] and blocks[-1].startswith("if ")] == ["404", "401"]


def test_who_asks_too_much_gets_429_and_not_the_503_of_a_broken_server(values):
    assert values("limit_req_status") == values("limit_conn_status") == ["429"]


def test_limits_go_by_client_and_not_by_address_which_a_balancer_shares(values):
    zones = values("limit_req_zone") + values("limit_conn_zone")
    assert zones
    assert not any("addr" in zone for zone in zones)


def test_every_limit_zone_is_used_and_every_limit_has_its_zone(values):
    zones = {re.search(r"zone=(\w+)", zone)[1] for zone in values("limit_req_zone") + values("limit_conn_zone")}
    used = {re.match(r"(?:zone=)?(\w+)", limit)[1] for limit in values("limit_req") + values("limit_conn")}
    assert zones == used
    assert {"rate_30_0", "concurrent_2"} <= zones


def test_a_long_answer_is_not_cut_off(nginx, values, nginx_data, engines):
    def seconds(value):
        return int(value.removesuffix("s"))

    assert all(seconds(place["proxy_read_timeout"][0]) >= 600 for place in proxying(nginx))
    settings = NginxSettings.load("node1", nginx_data | {"nginx_answer_seconds": 1800})
    tree = contents(nginx_files(settings, engines, Certificate()))
    found = directives(tree["/etc/nginx/nginx.conf"])
    assert all(seconds(place["proxy_read_timeout"][0]) == 1800 for place in proxying(found))
    assert [w[1] for _, w in found if w[0] == "worker_shutdown_timeout"] == ["1800s"]
    # Nor by systemd, which would kill nginx in the middle of its graceful stop.
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", tree["/etc/systemd/system/nginx.service"], re.MULTILINE)
    assert int(stop) > 1800


@both
def test_a_picture_or_a_long_context_fits_and_there_is_an_end_to_it(values, nginx_data, engines):
    # nginx's own limit is 1 MiB; the engine has none.
    (size,) = values("client_max_body_size")
    assert 4 <= int(size.removesuffix("m")) <= 256
    # What does not fit into memory would be written to a file, prompt and all, and not be seen by the script.
    assert values("client_body_buffer_size") == [size]


@both
def test_each_token_goes_out_as_it_comes(nginx):
    for place in proxying(nginx):
        assert place["proxy_buffering"] == place["gzip"] == place["proxy_cache"] == ["off"]


@both
def test_an_answer_is_never_asked_for_twice(nginx):
    for place in proxying(nginx):
        assert place["proxy_next_upstream"] == ["off"]


@both
def test_nginx_lets_go_of_an_idle_connection_before_vllm_does(nginx):
    idle = [words[1] for blocks, words in nginx if words[0] == "keepalive_timeout" and "upstream" in blocks[-1]]
    assert idle
    # vLLM closes after 5 s; a request that meets the closing gets a 502.
    assert all(int(value.removesuffix("s")) < 5 for value in idle)
    for place in proxying(nginx):
        assert place["proxy_http_version"] == ["1.1"]
    # Without it nginx asks the engine to close after each answer.
    headers = [words[1:] for _, words in nginx if words[0] == "proxy_set_header" and words[1] == "Connection"]
    assert headers == [["Connection", '""']] * len(proxying(nginx))


@both
def test_the_only_engine_is_never_taken_out_after_a_failure(nginx):
    servers = [words for blocks, words in nginx if words[0] == "server" and "upstream" in blocks[-1]]
    assert servers
    assert all("max_fails=0" in words for words in servers)


@both
def test_sessions_and_versions_are_not_given_away(values):
    assert values("ssl_session_tickets") == values("server_tokens") == ["off"]


@pytest.fixture
def log_format(nginx):
    (words,) = [words for _, words in nginx if words[0] == "log_format"]
    assert words[2] == "escape=json"
    return "".join(part.strip("'") for part in words[3:])


@both
def test_the_log_holds_no_prompt_no_key_and_no_query_string(log_format):
    # A balancer makes the id of a request itself.
    logged = set(re.findall(r"\$(\w+)", log_format.replace("$http_x_request_id", "$request_id")))
    assert {"client", "status", "request_id"} <= logged
    assert not logged & {"request", "request_uri", "request_body", "args", "query_string", "http_referer"}
    assert not any(name.startswith(("http_", "arg_", "cookie_", "sent_http_")) for name in logged)


@both
def test_a_line_of_the_log_is_json(log_format):
    assert json.loads(re.sub(r"\$\w+", "0", log_format))["client"] == "0"


def test_every_request_is_logged(values):
    assert values("access_log")
    assert not any("off" in value.split() or "if=" in value for value in values("access_log"))


@pytest.mark.parametrize("nginx_tree", ["balanced"], indirect=True)
def test_behind_balancers_every_request_but_their_own_checks_is_logged(nginx, values):
    assert values("access_log") == ["/var/log/nginx/access.json gateway if=$logged"]
    rows = [words for blocks, words in nginx if blocks[-1:] == ("map $client $logged",)]
    assert rows == [["default", "1"], [HEALTH_CLIENT, "0"]]


@pytest.mark.parametrize("nginx_tree", ["balanced"], indirect=True)
def test_behind_balancers_nobody_is_let_in_without_a_certificate_and_a_name(nginx, values):
    assert values("ssl_verify_client") == ["on"]
    rows = [words for blocks, words in nginx if blocks[-1:] == ("map $ssl_client_s_dn $client",)]
    assert rows == [["default", '""'], ['"CN=lb1.example.org"', "$http_x_client_id"]]
    assert ("401", 'if ($client = "")') in {(words[1], blocks[-1]) for blocks, words in nginx if words[0] == "return"}


# logrotate


@pytest.fixture
def rotation(platform):
    def render(**changes):
        settings = LogrotateSettings.load("node1", {"platform": platform} | changes)
        return contents(logrotate_files(settings, [LOGS]))["/etc/logrotate.d/nginx"]

    return render


def lines(text):
    return [line.strip() for line in text.splitlines()]


@both
def test_every_log_that_nginx_writes_is_rotated(values, rotation):
    written = {value.split()[0] for value in values("access_log") + values("error_log")}
    assert {Path(path).name for path in written} == {"access.json", "error.log"}
    assert written <= set(lines(rotation().replace("{", "")))


@pytest.fixture
def reopen(rotation):
    text = rotation()
    return text[text.index("postrotate") + len("postrotate") : text.index("endscript")].strip()


def test_after_a_rotation_nginx_opens_new_files_and_does_not_write_on_into_the_old(rotation, reopen):
    assert "nginx.service" in reopen
    assert "USR1" in reopen or "reload" in reopen
    # Lines written between the copy and the emptying would be lost.
    assert "copytruncate" not in rotation()


def test_a_rotation_while_nginx_is_stopped_does_not_signal_logrotate_itself(reopen, tmp_path, monkeypatch):
    # systemd shows 0 as the main process of a stopped unit; for kill, 0 is the caller's own group.
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho 0\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    done = subprocess.run(["sh", "-c", reopen], start_new_session=True, capture_output=True, check=False)
    assert done.returncode >= 0, "killed by its own signal"


def test_retention_is_counted_in_days_and_not_in_files(rotation):
    found = lines(rotation(logrotate_keep_days=2190))
    # A count deletes too early on a day on which the size asks for several rotations.
    assert "rotate -1" in found
    assert "maxage 2190" in found


def test_two_rotations_on_one_day_have_two_names(rotation):
    found = lines(rotation())
    assert "dateext" in found
    assert any(line.startswith("dateformat ") and "%s" in line for line in found)


def test_a_log_cannot_grow_without_end_before_its_day_is_over(rotation):
    assert "maxsize 64M" in lines(rotation(logrotate_max_mebibytes=64))


def test_a_new_log_is_not_open_to_others(rotation):
    (mode,) = [line.split()[1] for line in lines(rotation()) if line.startswith("create ")]
    assert int(mode, 8) & 0o137 == 0


# vLLM


@pytest.fixture
def vllm_tree(vllm_data, platform):
    def render(**changes):
        return contents(vllm_files(VllmSettings.load("node1", vllm_data | {"platform": platform} | changes)))

    return render


def settings_of(text):
    """The settings of a unit or an environment file; some stand more than once."""
    found = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def unit(vllm_tree):
    return settings_of(vllm_tree()["/etc/systemd/system/vllm@llama.service"])


@pytest.fixture
def environment(vllm_tree):
    return settings_of(vllm_tree()["/etc/vllm/llama.env"])


@pytest.fixture
def arguments(vllm_tree):
    return yaml.safe_load(vllm_tree()["/etc/vllm/llama.yaml"])


def test_the_configuration_is_named_in_two_words_since_vllm_ignores_one(unit, vllm_tree):
    (command,) = unit["ExecStart"]
    words = command.split()
    assert words[words.index("--config") + 1] in vllm_tree()
    assert "--config=" not in command


def test_no_argument_is_given_that_vllm_has_dropped(arguments):
    assert not {"disable-log-requests", "disable-log-stats-requests", "task"} & set(arguments)


def test_no_key_of_the_engines_own_is_relied_on_since_it_guards_a_part_of_the_paths(arguments, environment):
    assert "api-key" not in arguments
    assert "VLLM_API_KEY" not in environment
    assert arguments["host"] == "127.0.0.1"


def test_answers_that_have_begun_come_to_their_end_when_the_engine_stops(vllm_tree):
    tree = vllm_tree(vllm_drain_seconds=600)
    unit = settings_of(tree["/etc/systemd/system/vllm@llama.service"])
    assert yaml.safe_load(tree["/etc/vllm/llama.yaml"])["shutdown-timeout"] == 600
    # The default, control-group, stops the workers at once; 90 s is the default of the other.
    assert unit["KillMode"] == ["mixed"]
    assert int(unit["TimeoutStopSec"][0]) > 600


def test_a_model_that_loads_for_long_is_not_taken_for_dead(vllm_tree):
    unit = settings_of(vllm_tree(vllm_start_seconds=3600)["/etc/systemd/system/vllm@llama.service"])
    assert unit["TimeoutStartSec"] == ["3600"]


def test_the_sandbox_has_no_rule_under_which_kernels_cannot_be_compiled(unit):
    assert "MemoryDenyWriteExecute" not in unit


def test_the_sandbox_has_no_rule_that_hides_the_gpus(unit):
    assert "PrivateDevices" not in unit
    assert unit.get("ProcSubset", ["all"]) == ["all"]


def test_devices_are_named_by_group_since_patterns_of_paths_are_not_valid(unit):
    devices = [value.split()[0] for value in unit["DeviceAllow"]]
    assert {"char-nvidia", "char-nvidia-frontend", "char-nvidia-uvm", "char-nvidia-caps"} <= set(devices)
    assert not any("*" in device or device.startswith("/dev/nvidia") for device in devices)


def test_the_module_whose_devices_are_named_is_loaded_before_the_unit_starts(vllm_tree):
    # Names are looked up in /proc/devices at the start: without the module the rule is empty, and CUDA fails.
    unit = vllm_tree()["/etc/systemd/system/vllm@llama.service"]
    before = [value for name in ("After", "Wants", "Requires") for value in settings_of(unit).get(name, [])]
    loaded = [content for dest, content in vllm_tree().items() if dest.startswith("/etc/modules-load.d/")]
    assert any("nvidia_uvm" in text for text in before + loaded)


def test_a_host_without_a_gpu_gets_no_device_at_all(vllm_tree):
    unit = settings_of(vllm_tree(vllm_device="cpu")["/etc/systemd/system/vllm@llama.service"])
    assert unit["DevicePolicy"] == ["closed"]
    assert "DeviceAllow" not in unit


def test_a_host_without_a_default_route_does_not_listen_everywhere(environment):
    assert environment["VLLM_HOST_IP"] == ["127.0.0.1"]


def test_the_port_of_the_interface_is_not_mixed_up_with_the_port_between_processes(environment, arguments):
    assert "VLLM_PORT" not in environment
    assert arguments["port"] == 8000


def test_one_request_cannot_ask_for_thousands_of_answers(environment):
    assert int(environment["VLLM_MAX_N_SEQUENCES"][0]) <= 64


def test_an_address_that_a_request_names_leads_to_no_other_address(environment):
    assert environment["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == ["0"]


def test_a_model_sees_its_own_gpus_and_no_others(vllm_tree):
    models = {"a": {"port": 8000, "revision": "1", "gpus": [2, 3]}, "b": {"port": 8001, "revision": "1", "gpus": [0]}}
    tree = vllm_tree(vllm_models=models)
    seen = [settings_of(tree[f"/etc/vllm/{name}.env"])["CUDA_VISIBLE_DEVICES"] for name in models]
    assert seen == [["2,3"], ["0"]]
    parallel = [yaml.safe_load(tree[f"/etc/vllm/{name}.yaml"]).get("tensor-parallel-size", 1) for name in models]
    assert parallel == [2, 1]


def test_kernels_are_compiled_where_the_sandbox_lets_the_engine_write_and_nobody_else(unit, environment):
    # Not in /tmp, which a hardened host mounts noexec, and not in a home folder, which the sandbox hides.
    writable = [f"/var/cache/{name}" for name in unit["CacheDirectory"][0].split()]
    writable += [f"/var/lib/{name}" for name in unit["StateDirectory"][0].split()]
    assert unit["CacheDirectoryMode"] == ["0700"]
    paths = {name: value for name, (value,) in environment.items() if value.startswith("/")}
    assert {"HOME", "TMPDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT"} <= set(paths)
    for name, path in paths.items():
        assert any(path == folder or path.startswith(f"{folder}/") for folder in writable), name


def test_the_engine_logs_no_prompt(environment, arguments):
    assert environment.get("VLLM_LOGGING_LEVEL", ["INFO"]) != ["DEBUG"]
    assert not {"enable-log-requests", "enable-log-outputs"} & set(arguments)
    # Its lines hold query strings.
    assert arguments["disable-uvicorn-access-log"] is True


def test_the_engine_speaks_to_nobody_outside_unless_it_was_asked_for(vllm_tree):
    closed, open_ = vllm_tree(), vllm_tree(vllm_hub_access=True)
    path, env = "/etc/systemd/system/vllm@llama.service", "/etc/vllm/llama.env"
    assert settings_of(closed[path])["IPAddressDeny"] == ["any"]
    assert settings_of(closed[env])["HF_HUB_OFFLINE"] == ["1"]
    assert settings_of(closed[env])["VLLM_NO_USAGE_STATS"] == settings_of(open_[env])["VLLM_NO_USAGE_STATS"] == ["1"]
    assert "IPAddressDeny" not in settings_of(open_[path])
    # Who reads the file sees that this was relaxed, and by which key.
    assert "# Relaxed by vllm_hub_access = True" in open_[path]
    assert "# Relaxed by vllm_hub_access = True" in open_[env]


def test_the_token_of_the_hub_is_not_open_to_others(vllm_data, monkeypatch):
    settings = VllmSettings.load("node1", vllm_data | {"vllm_hf_token": "env:QUENCH_TEST_HUB"})
    holders = [file for file in vllm_files(settings) if isinstance(file, ManagedFile) and file.secrets]
    assert [(file.dest, file.mode) for file in holders] == [("/etc/vllm/llama.env", 0o600)]
    assert "HF_TOKEN=<secret env:QUENCH_TEST_HUB>\n" in holders[0].content
