"""nginx: it lets in who has a key, to what is listed, over TLS 1.3, and writes no secret down.

Behind balancers it lets in who has a balancer's certificate, and nobody else learns anything of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Unit

EXPOSURE = 2.0
FOLDER = "/etc/nginx/quench"
# What a client sends and no log may hold: as a key, in a query string, in a prompt.
CANARY = "sk-canary-this-must-stand-in-no-log"


@pytest.fixture(scope="module")
def nginx(unit: Callable[[str], Unit]) -> Unit:
    return unit("nginx.service")


@pytest.fixture(scope="module")
def configuration(host: Host) -> str:
    return str(host.file("/etc/nginx/nginx.conf").content_string)


@pytest.fixture(scope="module")
def balanced(configuration: str) -> bool:
    """Whether the host is behind balancers, by what nginx asks of who connects."""
    return re.search(r"^\s*ssl_verify_client on;", configuration, re.MULTILINE) is not None


@pytest.fixture(scope="module")
def stranger(balanced: bool) -> Callable[[str], str]:
    """The status for somebody who may not come in. Without a balancer's certificate it is the same for all there is."""
    return lambda status: "400" if balanced else status


@pytest.fixture(scope="module")
def port(configuration: str) -> str:
    ports = set(re.findall(r"^\s*listen (?:\S*:)?(\d+) ssl", configuration, re.MULTILINE))
    assert len(ports) == 1, ports
    return str(ports.pop())


@pytest.fixture(scope="module")
def url(host: Host, port: str) -> str:
    if not host.exists("curl"):
        pytest.skip("the host has no curl to ask nginx with")
    return f"https://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def status(host: Host, url: str) -> Callable[..., str]:
    """The HTTP status of a request from the host to itself; further arguments are curl's."""
    # The certificate carries the name that clients use, which need not lead here.
    command = "curl --silent --insecure --path-as-is --max-time 10 --output /dev/null --write-out '%%{http_code}'"

    def ask(path: str, *arguments: str) -> str:
        words = [f"{url}{path}", *arguments]
        return str(host.run(command + " %s" * len(words), *words).stdout)

    return ask


@pytest.fixture(scope="module")
def keyring(host: Host, balanced: bool) -> dict[str, dict[str, object]]:
    """Who has which key, by its hash. Behind balancers it is theirs."""
    if balanced:
        return {}
    keys: dict[str, dict[str, object]] = json.loads(host.file(f"{FOLDER}/keyring.json").content_string)["keys"]
    return keys


def test_it_is_enabled_and_runs(host: Host, nginx: Unit) -> None:
    assert host.service(nginx.name).is_enabled
    assert nginx.property("ActiveState") == "active", nginx.journal()


def test_it_runs_with_its_present_unit_file(nginx: Unit) -> None:
    assert nginx.property("NeedDaemonReload") == "no"
    assert nginx.property("FragmentPath") == "/etc/systemd/system/nginx.service"


def test_its_configuration_is_valid(host: Host, nginx: Unit) -> None:
    # As its own user: root would leave files behind that it cannot open. With as many open files as it may
    # have, else it warns.
    more = nginx.property("SupplementaryGroups")  # that of the role acme, if the host gets its certificate by itself
    groups = f"--groups={more}" if more else "--init-groups"
    become = f"setpriv --reuid={nginx.property('User')} --regid={nginx.property('Group')} {groups}"
    power = "--inh-caps=+net_bind_service --ambient-caps=+net_bind_service"
    done = host.run(f"""ulimit -Sn "$(ulimit -Hn)"; {become} {power} nginx -t -q -g 'pid /dev/null;'""")
    assert done.rc == 0, done.stderr
    assert re.findall(r"\[(?:warn|error|emerg)\].*", done.stderr) == []


def test_it_is_shut_in(nginx: Unit) -> None:
    assert nginx.exposure() <= EXPOSURE


def test_the_kernel_gives_it_no_more_than_it_needs(nginx: Unit) -> None:
    status = nginx.kernel_says()
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    # capabilities(7): NET_BIND_SERVICE is 10.
    assert int(status["CapBnd"], 16) & ~(1 << 10) == 0


def test_nothing_of_it_runs_as_root(host: Host, nginx: Unit) -> None:
    pids = ",".join(str(pid) for pid in nginx.pids())
    users = set(host.check_output("ps -o user= -p %s", pids).split())
    assert users == {nginx.property("User")}
    assert users != {"root"}


def test_it_listens_on_its_tls_port_alone(nginx: Unit, port: str) -> None:
    assert nginx.listens_on() == {f"0.0.0.0:{port}", f"[::]:{port}"}, nginx.journal()


def test_only_nginx_reads_the_private_key_and_the_keyring(
    host: Host, nginx: Unit, configuration: str, balanced: bool
) -> None:
    own = nginx.property("Group")
    (key,) = set(re.findall(r"^\s*ssl_certificate_key (\S+);", configuration, re.MULTILINE))
    keys = nginx.property("SupplementaryGroups") or own
    ring = [] if balanced else [(f"{FOLDER}/keyring.json", 0o640, own)]
    for path, mode, group in ((FOLDER, 0o750, own), (key, 0o640, keys), *ring):
        file = host.file(path)
        assert (file.mode, file.user, file.group) == (mode, "root", group), path
        # nobody stands for every other service of the host.
        assert host.run("runuser -u nobody -- test -r %s", path).rc == 1, path


def test_the_certificate_is_good_for_another_week(host: Host, configuration: str) -> None:
    if not host.exists("openssl"):
        pytest.skip("the host has no openssl to read the certificate with")
    (path,) = set(re.findall(r"^\s*ssl_certificate (\S+);", configuration, re.MULTILINE))
    done = host.run("openssl x509 -noout -enddate -checkend 604800 -in %s", path)
    assert done.rc == 0, done.stdout


def test_the_keyring_holds_hashes_and_no_key(keyring: dict[str, dict[str, object]], balanced: bool) -> None:
    if balanced:
        pytest.skip("behind balancers, who have the keyring")
    assert keyring != {}
    assert [name for name in keyring if not re.fullmatch(r"[0-9a-f]{64}", name)] == []
    for entry in keyring.values():
        assert set(entry) == {"client", "expires", "models", "rate", "concurrent"}


@pytest.mark.parametrize(
    "key",
    [[], ["--header", f"Authorization: Bearer {CANARY}"], ["--header", f"X-API-Key: {CANARY}"]],
    ids=["none", "bearer", "x"],
)
def test_without_a_good_key_nobody_comes_in(
    status: Callable[..., str], stranger: Callable[[str], str], nginx: Unit, key: list[str]
) -> None:
    assert status("/v1/models", *key) == stranger("401"), nginx.journal()
    assert status("/v1/chat/completions", "--data", "{}", *key) == stranger("401")


def test_behind_balancers_no_key_lies_here_and_none_is_asked_for(
    host: Host, configuration: str, balanced: bool
) -> None:
    if not balanced:
        pytest.skip("no balancer in front of this host")
    assert not host.file(f"{FOLDER}/keyring.json").exists
    assert not host.file(f"{FOLDER}/gateway.js").exists
    assert "js_import" not in configuration
    # A client is whom a balancer names, and nobody else names one.
    (names,) = re.findall(
        r"^    map \$ssl_client_s_dn \$client \{\n(.*?)^    \}", configuration, re.MULTILINE | re.DOTALL
    )
    first, *balancers = [line.strip() for line in names.splitlines() if line.strip()]
    assert first == 'default "";'
    assert balancers != []
    assert [line for line in balancers if not re.fullmatch(r'"CN=[a-z0-9.-]+" \$http_x_client_id;', line)] == []


def test_behind_balancers_another_certificate_of_the_house_lets_nobody_in(
    status: Callable[..., str], configuration: str, balanced: bool
) -> None:
    if not balanced:
        pytest.skip("no balancer in front of this host")
    (certificate,) = set(re.findall(r"^\s*ssl_certificate (\S+);", configuration, re.MULTILINE))
    (key,) = set(re.findall(r"^\s*ssl_certificate_key (\S+);", configuration, re.MULTILINE))
    lies = ["--header", "X-Client-Id: somebody", "--cert", certificate, "--key", key, "--data", "{}"]
    # 400: by another CA, or not for clients; 401: by theirs, and in another name.
    assert status("/v1/chat/completions", *lies) in ("400", "401")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/metrics",
        "/version",
        "/docs",
        "/openapi.json",
        "/tokenize",
        "/v1/load_lora_adapter",
        "/v1/models/",
        "/v1//models",
        "/v1/%6dodels",
        "/V1/models",
        "/health/../v1/models",
        "/v1/models/../../health",
        "/v1/models?limit=1",
    ],
)
def test_what_is_not_listed_is_not_there(status: Callable[..., str], stranger: Callable[[str], str], path: str) -> None:
    assert {status(path), status(path, "--request", "POST")} == {stranger("404")}


def test_other_methods_are_not_there(status: Callable[..., str], stranger: Callable[[str], str]) -> None:
    answers = {method: status("/v1/models", "--request", method) for method in ("POST", "PUT", "DELETE", "OPTIONS")}
    assert set(answers.values()) == {stranger("404")}, answers


def test_it_speaks_tls_1_3_alone(
    host: Host, status: Callable[..., str], stranger: Callable[[str], str], url: str
) -> None:
    assert status("/v1/models", "--tlsv1.3") == stranger("401")
    # 35: the TLS handshake failed. Any other code would be another reason.
    for version in ("1.0", "1.1", "1.2"):
        done = host.run(f"curl --silent --insecure --tls-max {version} {url}/v1/models")
        assert done.rc == 35, f"TLS {version}"


def test_it_speaks_no_plain_http(host: Host, url: str) -> None:
    plain = f"{url.replace('https', 'http')}/v1/models"
    answer = host.run("curl --silent --output /dev/null --write-out '%%{http_code}' %s", plain)
    assert answer.stdout == "400"


@pytest.mark.parametrize("path", ["/", "/v1/models"])
def test_answers_ask_for_tls_and_do_not_tell_the_version(host: Host, url: str, path: str) -> None:
    answer = host.check_output(f"curl --silent --insecure --include {url}{path}")
    headers = dict(re.findall(r"^([\w-]+): (.*?)\s*$", answer.lower(), re.MULTILINE))
    assert headers["server"] == "nginx"
    assert headers["strict-transport-security"].startswith("max-age=")


def test_logs_are_lines_of_json_without_a_secret(
    host: Host,
    status: Callable[..., str],
    stranger: Callable[[str], str],
    keyring: dict[str, dict[str, object]],
) -> None:
    body = json.dumps({"model": CANARY, "messages": [{"role": "user", "content": CANARY}]})
    key = ["--header", f"Authorization: Bearer {CANARY}", "--data", body]
    assert status(f"/v1/chat/completions?api_key={CANARY}", *key) == stranger("404")
    assert status("/v1/chat/completions", *key) == stranger("401")
    lines = host.check_output("tail --lines=1000 /var/log/nginx/access.json").splitlines()
    # Others may have been answered meanwhile, but not from here.
    last = [record for record in map(json.loads, lines) if record["address"] == "127.0.0.1"][-1]
    assert (last["path"], str(last["status"]), last["client"]) == ("/v1/chat/completions", stranger("401"), "")
    assert {"time", "request_id", "model", "method", "bytes_in", "bytes_out", "seconds", "tls"} <= set(last)
    # grep ends with 1 if it finds nothing; the journal has what nginx wrote before it had its log files.
    for secret in (CANARY, "Bearer ", *keyring):
        assert host.run("grep -rlF -e %s /var/log/nginx", secret).rc == 1, "a secret stands in a log of nginx"
        journal = host.run("journalctl --unit nginx.service --no-pager | grep -cF -e %s", secret)
        assert journal.stdout.strip() == "0", "a secret stands in the journal of nginx"


def test_logs_are_not_for_everybody(host: Host) -> None:
    folder = host.file("/var/log/nginx")
    assert folder.mode & 0o007 == 0
    assert host.run("runuser -u nobody -- ls /var/log/nginx").rc != 0
