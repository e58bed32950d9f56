"""What the files of a balancer say. An error that other guides have spread has its number beside its test."""

import json
import re
import shlex
import shutil
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from quench import Certificate, Engine, Node, Peer, Route
from roles.haproxy import HaproxySettings, files
from roles.haproxy.files import pools
from roles.vllm import served

TEXT = (Route("POST", "/v1/chat/completions"), Route("POST", "/v1/completions"))
LLAMA = Engine("llama", 8000, TEXT, concurrent=64)
QWEN = Engine("qwen", 8001, TEXT, concurrent=16)
EMBED = Engine("embed", 8002, (Route("POST", "/v1/embeddings"),))
NODES = (
    Node("node1", "10.0.30.11", 443, "node1.example.org", (LLAMA, QWEN)),
    Node("node2", "10.0.30.12", 443, "node2.example.org", (LLAMA, EMBED), weight=50),
    Node("node3", "10.0.30.13", 443, "node3.example.org", (LLAMA,), standby=True),
)
CLIENT = {"keys": [{"sha256": "a" * 64, "expires": "2030-06-30"}], "requests_per_minute": 120, "concurrent": 16}


@pytest.fixture
def data(example_secrets):
    return {
        "platform": "debian-12",
        "haproxy_server_name": "llm.example.org",
        "haproxy_certificate": f"{example_secrets}/llm.example.org.crt",
        "haproxy_private_key": f"file:{example_secrets}/llm.example.org.key",
        "haproxy_node_name": "lb1.example.org",
        "haproxy_node_certificate": f"{example_secrets}/lb1.example.org.crt",
        "haproxy_node_private_key": f"file:{example_secrets}/lb1.example.org.key",
        "haproxy_node_ca": f"{example_secrets}/ca.crt",
        "haproxy_clients": {"team-a": CLIENT},
    }


@pytest.fixture
def rendered(data):
    def render(nodes=NODES, **changes):
        settings = HaproxySettings.load("lb1", data | changes)
        return {file.dest: file.content for file in files(settings, nodes, Certificate()) if hasattr(file, "content")}

    return render


@pytest.fixture
def configuration(rendered):
    return lambda nodes=NODES, **changes: rendered(nodes, **changes)["/etc/haproxy/haproxy.cfg"]


def section(text, name):
    """The lines of a section, without comments."""
    start = text.index(f"\n{name}\n") + 1
    lines = text[start:].splitlines()
    end = next((i for i, line in enumerate(lines[1:], 1) if line and not line.startswith((" ", "#"))), len(lines))
    return [line.strip() for line in lines[1:end] if line.strip() and not line.strip().startswith("#")]


def test_the_settings_have_no_problem(data):
    assert list(HaproxySettings.load("lb1", data).problems("lb1")) == []


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        (
            {"haproxy_node_name": "lb9.example.org"},
            "haproxy_node_certificate",
            "does not carry the name lb9.example.org",
        ),
        ({"haproxy_server_name": "other.example.org"}, "haproxy_certificate", "does not carry the name"),
        ({"haproxy_node_ca": "/nowhere"}, "haproxy_node_ca", "No such file"),
        ({"haproxy_metrics_port": 1443, "haproxy_port": 1443}, "haproxy_metrics_port", "as haproxy_port"),
    ],
)
def test_what_cannot_work_is_said(data, change, key, words):
    found = list(HaproxySettings.load("lb1", data | change).problems("lb1"))
    assert [problem.key for problem in found] == [key]
    assert words in found[0].what


@pytest.fixture
def issued(data, tmp_path):
    """The balancer's data with a client certificate of this subject and usage."""

    def issue(subject, *usages):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name.from_rfc4514_string(subject)
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
        names = x509.SubjectAlternativeName([x509.DNSName("lb1.example.org")])
        builder = builder.add_extension(names, critical=False)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        certificate = builder.sign(key, hashes.SHA256())
        (tmp_path / "lb1.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / "lb1.key").write_bytes(pem)
        paths = {"certificate": f"{tmp_path}/lb1.crt", "private_key": f"file:{tmp_path}/lb1.key"}
        return data | {f"haproxy_node_{name}": value for name, value in paths.items()}

    return issue


SERVER, CLIENTS = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@pytest.mark.parametrize(
    ("subject", "usages", "words"),
    [
        ("CN=lb1.example.org", [], ""),
        ("CN=lb1.example.org", [SERVER, CLIENTS], ""),
        (
            "CN=lb1.example.org,O=Example",
            [CLIENTS],
            "has the subject 'CN=lb1.example.org,O=Example', and nodes know CN=",
        ),
        ("O=Example", [CLIENTS], "has the subject 'O=Example', and nodes know CN="),
        ("CN=lb1.example.org", [SERVER], "lacks the usage clientAuth"),
    ],
)
def test_a_client_certificate_that_nodes_would_not_take_is_said(issued, subject, usages, words):
    # They compare the whole subject, and would answer 401 or 400 to each request and each check.
    found = list(HaproxySettings.load("lb1", issued(subject, *usages)).problems("lb1"))
    assert [problem.key for problem in found] == ["haproxy_node_certificate"] * bool(words)
    assert all(words in problem.what for problem in found)


def test_each_model_has_a_pool_of_the_nodes_that_serve_it():
    assert {pool.model: [node.name for node, _ in pool.members] for pool in pools(NODES)} == {
        "embed": ["node2"],
        "llama": ["node1", "node2", "node3"],
        "qwen": ["node1"],
    }


def test_no_server_is_defined_twice_in_a_pool(configuration):
    # "another server named … was already defined": HAProxy does not start.
    for name in ("pool_llama", "pool_qwen", "pool_embed"):
        servers = [
            line.split()[1] for line in section(configuration(), f"backend {name}") if line.startswith("server ")
        ]
        assert len(servers) == len(set(servers)) > 0


def test_slowstart_and_checks_hold_for_every_server(configuration):
    (default,) = [line for line in section(configuration(), "backend pool_llama") if line.startswith("default-server ")]
    assert {"check", "slowstart", "30s", "verify", "required"} <= set(default.split())


def test_there_are_timeouts_and_the_mode_is_http(configuration):
    # Without them sessions hang for ever; without the mode there is no balancing by request.
    lines = section(configuration(), "defaults")
    assert "mode http" in lines
    timeouts = {line.split()[1] for line in lines if line.startswith("timeout ")}
    assert {"client", "server", "connect", "queue", "http-request", "http-keep-alive", "check"} <= timeouts


def test_a_node_or_a_client_without_power_is_found_out(configuration):
    # Else the other side waits as long as an answer may be silent, and a client's place is taken for as long.
    lines = section(configuration(), "defaults")
    for side, limit in (("cli", 60), ("srv", 25)):
        words = [line.split() for line in lines if line.startswith(f"{side}tcpka-")]
        seconds = {name: int(value.rstrip("s")) for name, value in words}
        assert f"option {side}tcpka" in lines
        end = seconds[f"{side}tcpka-idle"] + seconds[f"{side}tcpka-intvl"] * seconds[f"{side}tcpka-cnt"]
        assert end == limit
    (server,) = [line for line in section(configuration(), "backend pool_llama") if line.startswith("default-server ")]
    binds = [line for line in section(configuration(), "frontend clients") if line.startswith("bind ")]
    assert len(binds) == 2
    assert " tcp-ut 25s" in server
    assert all(" tcp-ut 60s" in line for line in binds)


@pytest.mark.parametrize(("model", "path"), [("llama", "/v1/completions"), ("embed", "/v1/embeddings")])
def test_health_means_that_the_model_answers(configuration, model, path):
    # A list of models, or of files, is 200 with a dead GPU.
    lines = section(configuration(), f"backend pool_{model}")
    (send,) = [line for line in lines if line.startswith("http-check send ")]
    assert f"meth POST uri {path} " in send
    assert json.loads(re.search(r"body '(.*)'", send)[1])["model"] == model
    assert "http-check expect status 200" in lines


def test_an_embedding_model_is_asked_for_an_embedding_and_for_nothing_else(configuration, vllm_data):
    # vLLM refuses it a completion, and no node of its pool would ever be up.
    models = {"bge": {"port": 8000, "revision": "1", "gpus": [0], "kind": "embed"}}
    (engine,) = served(Peer("node1", vllm_data | {"vllm_models": models}))
    assert [(route.method, route.path) for route in engine.routes] == [("POST", "/v1/embeddings")]
    text = configuration([Node("node1", "10.0.30.11", 443, "node1.example.org", (engine,))])
    assert "http-check send meth POST uri /v1/embeddings " in text and "completions" not in text


def test_the_socket_can_drain_and_is_on_no_network(configuration):
    # The procedure needs the level admin.
    (socket,) = [line for line in section(configuration(), "global") if line.startswith("stats socket")]
    assert socket.split()[2:] == ["/run/haproxy/admin.sock", "mode", "600", "level", "admin", "expose-fd", "listeners"]
    assert "stats admin" not in configuration() and "stats enable" not in configuration()


def test_a_node_that_takes_no_connection_is_not_the_end(configuration):
    # 15 s of errors after a crash; and nothing that was sent is sent again.
    lines = section(configuration(), "backend pool_llama")
    assert "option redispatch 1" in lines and "retry-on conn-failure" in lines


def test_the_way_to_the_nodes_is_encrypted_and_checked(configuration):
    # Plain HTTP to the backends.
    for line in section(configuration(), "backend pool_llama"):
        if line.startswith("server "):
            name = line.split()[1]
            assert f"verifyhost {name}.example.org" in line and f"sni str({name}.example.org)" in line
    assert "verify none" not in configuration()


def test_weights_limits_and_standby_are_the_nodes_own(configuration):
    small = Node("node4", "10.0.30.14", 443, "node4.example.org", (Engine("llama", 8000, TEXT, concurrent=8),))
    lines = section(configuration((*NODES, small)), "backend pool_llama")
    servers = {line.split()[1]: line for line in lines if line.startswith("server ")}
    limits = {name: int(re.search(r" maxconn (\d+) ", line)[1]) for name, line in servers.items()}
    assert limits == {"node1": 64, "node2": 64, "node3": 64, "node4": 8}
    assert "weight 50" in servers["node2"]
    assert [name for name, line in servers.items() if line.endswith(" backup")] == ["node3"]


def test_the_balance_is_always_written_down(configuration):
    # The default differs between versions: round robin up to 3.2, random later.
    assert "balance leastconn" in section(configuration(), "backend pool_llama")
    lines = section(configuration(haproxy_balance="session"), "backend pool_llama")
    assert {"balance hash req.hdr(x-session-id)", "hash-type consistent", "hash-balance-factor 150"} <= set(lines)


def test_only_tls_1_3(configuration):
    lines = section(configuration(), "global")
    assert "ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets" in lines
    assert "ssl-default-server-options ssl-min-ver TLSv1.3 no-tls-tickets" in lines
    # TLS 1.2's list of ciphers says nothing on 1.3.
    assert "ssl-default-bind-ciphers" not in configuration()


def test_a_client_cannot_say_who_it_is(configuration):
    lines = section(configuration(), "frontend clients")
    assert "http-request del-header X-Model" in lines
    assert "http-request set-header X-Client-Id %[var(txn.client)]" in lines
    assert {"http-request del-header Authorization", "http-request del-header X-API-Key"} <= set(lines)


def test_refusals_say_when_to_come_back(configuration):
    refusals = [line for line in configuration().splitlines() if re.search(r"status (429|503) ", line)]
    assert len(refusals) >= 4
    assert [line for line in refusals if "Retry-After" not in line.replace(" hdr ", " ")] == []


def test_only_what_both_limits_let_through_counts_for_the_rate(configuration):
    # Who comes back as Retry-After says, while all of his requests count, is refused for ever.
    (table,) = [line for line in section(configuration(), "backend counts") if line.startswith("stick-table ")]
    assert "gpc0_rate(60s),conn_cur" in table.split() and "http_req_rate" not in configuration()
    lines = section(configuration(), "frontend clients")
    refusals = [number for number, line in enumerate(lines) if " status 429 " in line]
    assert len(refusals) == 2
    assert lines.index("http-request sc-inc-gpc0(0)") > max(refusals)


def test_a_full_house_leaves_room_for_the_check_of_keepalived(configuration):
    # A check that waits with the clients moves the address, and the clients with it, to the other balancer.
    text = configuration(haproxy_connections=500)
    (limit,) = [int(line.split()[1]) for line in section(text, "global") if line.startswith("maxconn ")]
    lines = section(text, "frontend clients")
    assert "tcp-request connection reject if !from_here { fe_conn gt 500 }" in lines
    assert limit > 500 and not [line for line in lines if line.startswith("maxconn ")]


def test_every_error_body_is_json(configuration):
    bodies = re.findall(r" string '(.*?)'(?: |$)", configuration(), re.MULTILINE)
    assert len(bodies) > 10
    for text in bodies:
        assert json.loads(text)["error"]["message"]


def test_the_allow_list_is_what_the_engines_have_and_the_list_of_models(configuration):
    (line,) = [line for line in section(configuration(), "frontend clients") if line.startswith("acl listed ")]
    calls = ["GET /v1/models", "POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings"]
    # One rule for all: it is one look into a tree, and not a comparison for each.
    assert shlex.split(line) == ["acl", "listed", "var(txn.call)", "-m", "str", *calls]


def test_the_log_is_one_json_object_without_key_and_query(rendered):
    (line,) = re.findall(r"^ *log-format '(.*)'$", rendered()["/etc/haproxy/haproxy.cfg"], re.MULTILINE)
    assert "hdr" not in line and "query" not in line and "url" not in line
    filled = re.sub(r"%\[[^\]]*\]\]?", "x", line)
    filled = re.sub(r"%(ST|U|B|Ta|Tw|Tc|Tr)\b", "1", filled)
    assert json.loads(re.sub(r"%\w+", "x", filled))["status"] == 1


def test_maps_have_hashes_and_no_comment(rendered):
    texts = rendered(haproxy_clients={"team-a": CLIENT, "only": {**CLIENT, "keys": [KEY_B], "models": ["qwen"]}})
    keys = texts["/etc/haproxy/quench/keys.map"].splitlines()
    # 2030-06-30 in seconds since 1970.
    assert keys == [f"{'b' * 64} only|1909008000|120|16", f"{'a' * 64} team-a|1909008000|120|16"]
    assert texts["/etc/haproxy/quench/pools.map"].splitlines() == [
        "only/qwen pool_qwen",
        "team-a/embed pool_embed",
        "team-a/llama pool_llama",
        "team-a/qwen pool_qwen",
    ]
    lists = dict(line.split(" ", 1) for line in texts["/etc/haproxy/quench/lists.map"].splitlines())
    assert [model["id"] for model in json.loads(lists["only"])["data"]] == ["qwen"]


def test_two_clients_of_two_models_see_and_use_only_their_own(rendered):
    texts = rendered(
        haproxy_clients={
            "team-a": {**CLIENT, "models": ["llama"]},
            "team-b": {**CLIENT, "keys": [KEY_B], "models": ["qwen"]},
        }
    )
    assert texts["/etc/haproxy/quench/pools.map"].splitlines() == ["team-a/llama pool_llama", "team-b/qwen pool_qwen"]
    lists = dict(line.split(" ", 1) for line in texts["/etc/haproxy/quench/lists.map"].splitlines())
    seen = {name: [model["id"] for model in json.loads(text)["data"]] for name, text in lists.items()}
    assert seen == {"team-a": ["llama"], "team-b": ["qwen"]}
    text = texts["/etc/haproxy/haproxy.cfg"]
    # The map is the only way to a pool, by both ways that a request takes.
    for name in ("clients", "routed"):
        lines = section(text, f"frontend {name}")
        ways = {line for line in lines if "use_backend" in line or "default_backend" in line}
        assert ways <= {"use_backend body_router if !named", "use_backend %[var(txn.pool)]"}
        (pool,) = [line for line in lines if line.startswith("http-request set-var(txn.pool) ")]
        assert pool.endswith(" var(txn.client),concat(/,txn.model),map_str(/etc/haproxy/quench/pools.map)")
    for model in ("llama", "qwen"):
        assert f"http-request set-header X-Model {model}" in section(text, f"backend pool_{model}")


KEY_B = {"sha256": "b" * 64, "expires": "2030-06-30"}


# The body router's answer to a request, where JSON.parse reads nothing, as it does in njs behind 32 levels.
ROUTE = """
const parse = JSON.parse;
JSON.parse = (text) => { if (/[{[]/.test(text)) throw new SyntaxError("deep"); return parse(text); };
const body = require("fs").readFileSync(0);
const r = { requestText: body.toString(), requestBuffer: body, variables: {}, subrequest() {} };
route(r);
process.stdout.write(JSON.stringify(r.variables.model));
"""
DEEP = "[" * 40 + "1" + "]" * 40


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed here")
@pytest.mark.parametrize(
    ("body", "model"),
    [
        ('{"tools": %s, "model": "llama"}', "llama"),
        ('{"model": "llama", "tools": %s}', "llama"),
        ('{"tools": [{"model": "other", "x": %s}], "model": "llama"}', "llama"),
        ('{"a": "\\"model\\": \\"other\\", \\\\", "model":\n"llama", "tools": %s}', "llama"),
        ('{"a": "model", "b": "other", "tools": %s}', ""),
        ('{"mod\\u0065l": "ll\\u0061ma", "tools": %s}', "llama"),
        ('{"é": "é", "model": "llama", "tools": %s}', "llama"),
        # Of a name that is given twice, the last counts, as for JSON.parse.
        ('{"model": "other", "tools": %s, "model": "llama"}', "llama"),
        ('{"model": "other", "tools": %s, "model": 5, "a": "llama"}', ""),
        ('{"model": "other", "tools": %s, "model": {"a": "llama"}}', ""),
        ('["model", %s, "llama"]', ""),
        ('{"tools": %s, "model": "llam', ""),
        ('{"tools": %s, "model": "a b"}', ""),
        ("{%s", ""),
    ],
)
def test_the_body_router_finds_the_outermost_model_at_any_depth(rendered, body, model):
    script = rendered()["/etc/haproxy/body-router/router.js"].replace("export default { route };", ROUTE)
    done = subprocess.run(
        ["node", "-e", script], input=(body % DEEP).encode(), capture_output=True, check=True, timeout=20
    )
    assert json.loads(done.stdout) == model


def test_a_queue_has_an_end(configuration):
    text = configuration(haproxy_queue_requests=7)
    for name in ("body_router", "pool_llama", "pool_qwen", "pool_embed"):
        (refusal,) = [line for line in section(text, f"backend {name}") if " status 503 " in line]
        assert refusal.endswith(" hdr Retry-After 5 if { queue ge 7 }")


def test_a_reload_closes_no_connection_on_which_a_request_is_coming(configuration):
    for name in ("clients", "routed"):
        assert "option idle-close-on-response" in section(configuration(), f"frontend {name}")


def test_where_haproxy_finds_no_model_the_body_router_looks(configuration):
    lines = section(configuration(), "frontend clients")
    assert "acl named var(txn.model) -m found" in lines
    assert lines[-2:] == ["use_backend body_router if !named", "use_backend %[var(txn.pool)]"]
    assert not [line for line in lines if "model_missing" in line]
    assert [line for line in section(configuration(), "frontend routed") if "model_missing" in line]


def test_nothing_runs_as_root(rendered):
    for name in ("haproxy", "body-router"):
        lines = rendered()[f"/etc/systemd/system/{name}.service"].splitlines()
        assert "User=haproxy" in lines and "NoNewPrivileges=yes" in lines


def test_no_setting_of_numbers_changes_the_unit(rendered):
    # A change of the unit is a restart, which closes the port until the last answer has ended.
    numbers = {"connections": 500, "answer_seconds": 1, "queue_seconds": 1, "large_requests": 1, "body_mebibytes": 1}
    changed = rendered(**{f"haproxy_{name}": value for name, value in numbers.items()})
    for name in ("haproxy", "body-router"):
        path = f"/etc/systemd/system/{name}.service"
        assert changed[path] == rendered()[path]


def test_a_reload_keeps_what_was_drained(rendered):
    # A drained node that comes back with a reload gets requests in the midst of its change.
    unit = rendered()["/etc/systemd/system/haproxy.service"]
    assert unit.index("ExecReload=/usr/local/lib/quench/haproxy-server-state") < unit.index("kill -USR2")
    assert "load-server-state-from-file global" in rendered()["/etc/haproxy/haproxy.cfg"]


STATE = """\
1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since srv_check
4 pool_llama 1 node1 10.0.30.11 2 8 100 100 5 6 3 4 6 0 0 0 - 443 - 0 0 - - 0
4 pool_llama 2 node2 10.0.30.12 2 0 50 50 5 6 3 4 6 0 0 0 - 8443 - 0 0 - - 0
4 pool_llama 3 node3 10.0.30.99 2 0 100 100 5 6 3 4 6 0 0 0 - 443 - 0 0 - - 0
4 pool_llama 4 node4 10.0.30.99 2 0 100 100 5 6 3 4 6 0 0 0 node4.example.org 443 - 0 0 - - 0
10 pool_gone 1 node1 10.0.30.11 2 0 100 100 5 6 3 4 6 0 0 0 - 443 - 0 0 - - 0

"""


@pytest.fixture
def kept(rendered, tmp_path, monkeypatch):
    """The state file after the script has run, with this as the answer of HAProxy's socket."""
    texts = rendered((*NODES, Node("node4", "node4.example.org", 443, "node4.example.org", (LLAMA,))))
    (tmp_path / "haproxy.cfg").write_text(texts["/etc/haproxy/haproxy.cfg"])
    script = texts["/usr/local/lib/quench/haproxy-server-state"]
    script = script.replace("/var/lib/haproxy", str(tmp_path)).replace("/etc/haproxy", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def run(answer):
        (tmp_path / "answer").write_text(answer)
        (tmp_path / "socat").write_text(f"#!/bin/sh\ncat {tmp_path}/answer\n")
        (tmp_path / "socat").chmod(0o755)
        done = subprocess.run(["sh", "-c", script], check=False)
        assert [path.name for path in tmp_path.glob("server-state*")] == ["server-state"]
        return done.returncode, (tmp_path / "server-state").read_text().splitlines()

    return run


def test_the_state_of_a_node_with_another_address_or_port_is_forgotten(kept):
    # node1 is drained, and stays so. node2 has another port by now, node3 another address, and a pool is gone. node4 is
    # called by its name.
    lines = STATE.splitlines()
    assert kept(STATE) == (0, [*lines[:3], lines[5], ""])


@pytest.mark.parametrize("answer", ["", "1\n", STATE[: STATE.index("4 pool")] + "\n", STATE[:-1]])
def test_an_answer_that_is_not_whole_leaves_the_state_as_it_was(kept, answer):
    _, before = kept(STATE)
    code, after = kept(answer)
    assert (code != 0, after) == (True, before)


def test_a_boot_before_names_are_known_is_tried_until_they_are(rendered):
    # With `none` HAProxy starts without these nodes, and never asks for their names again.
    assert " init-addr libc check " in rendered()["/etc/haproxy/haproxy.cfg"]
    unit = rendered()["/etc/systemd/system/haproxy.service"]
    assert {"Restart=always", "RestartSec=1", "StartLimitIntervalSec=0"} <= set(unit.splitlines())


def test_a_boot_brings_no_drained_node_back(rendered):
    unit = rendered()["/etc/systemd/system/haproxy.service"]
    assert "\nExecStop=-/usr/local/lib/quench/haproxy-server-state\n" in unit
