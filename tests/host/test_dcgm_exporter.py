"""The exporter of GPU counters: over TLS, to clients with a certificate, on one address, without a GPU of its own."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Packages, Unit

EXPOSURE = 2.0
FOLDER = "/etc/dcgm-exporter/quench"
# What not every GPU has: NVLink, profiling, memory with a sensor or with rows to remap; and errors, before the first.
NOT_EVERYWHERE = re.compile("NVLINK|_PROF_|_MEMORY_TEMP|_ROW|_EXP_XID|_ECC_")

# A request in this version of TLS at most, or without TLS: the beginning of the answer, or why there is none. The
# driver's role has brought python3 to the host; curl need not be there.
REQUEST = """
import socket, ssl, sys
address, port, version = sys.argv[1:]
connection = socket.create_connection((address, int(port)), timeout=10)
try:
    if version != "none":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion[version]
        connection = context.wrap_socket(connection)
        connection.settimeout(3)
        try:
            # An alert comes unasked; a request that crosses it would break the connection first.
            connection.recv(1)
        except socket.timeout:
            pass
    connection.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n")
    print(connection.recv(12).decode())
except ssl.SSLError as error:
    print(error.reason or error)
except ConnectionError:
    print()
"""


@pytest.fixture(scope="module")
def exporter(unit: Callable[[str], Unit]) -> Unit:
    return unit("nvidia-dcgm-exporter.service")


@pytest.fixture(scope="module")
def words(exporter: Unit) -> list[str]:
    """The command line of the exporter."""
    return exporter.property("ExecStart").partition("argv[]=")[2].partition(" ;")[0].split()


@pytest.fixture(scope="module")
def address(words: list[str]) -> str:
    """ADDRESS:PORT on the monitoring network."""
    return words[words.index("--address") + 1]


@pytest.fixture(scope="module")
def ask(host: Host, exporter: Unit, address: str) -> Callable[[str], str]:
    """What the exporter says to a request from its own host, which has no certificate: an answer, or TLS's reason."""
    own, _, port = address.rpartition(":")
    allowed = [ipaddress.ip_network(network) for network in exporter.property("IPAddressAllow").split()]
    if not any(ipaddress.ip_address(own.strip("[]")) in network for network in allowed):
        pytest.skip(f"the host's own address {own} is not in dcgm_exporter_clients: the kernel drops what it asks")
    return lambda version: str(host.check_output("python3 -c %s %s %s %s", REQUEST, own.strip("[]"), port, version))


def test_it_is_enabled_and_runs(host: Host, exporter: Unit) -> None:
    assert host.service(exporter.name).is_enabled
    assert exporter.property("ActiveState") == "active", exporter.journal()


def test_it_runs_with_its_present_unit_file(exporter: Unit) -> None:
    assert exporter.property("NeedDaemonReload") == "no"
    assert exporter.property("FragmentPath") == f"/etc/systemd/system/{exporter.name}"


def test_it_is_of_the_pinned_version(packages: Packages) -> None:
    name = "datacenter-gpu-manager-exporter"
    assert packages.installed()[name] == packages.pinned(name)


def test_it_listens_on_its_one_address_alone(exporter: Unit, address: str) -> None:
    own = ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    assert not own.is_unspecified
    assert exporter.listens_on() == {address}, exporter.journal()


def test_the_kernel_drops_what_comes_from_outside_the_monitoring_zone(exporter: Unit) -> None:
    assert sorted(exporter.property("IPAddressDeny").split()) == ["0.0.0.0/0", "::/0"]
    allowed = [ipaddress.ip_network(network) for network in exporter.property("IPAddressAllow").split()]
    assert allowed != []
    assert [network for network in allowed if network.prefixlen == 0] == []


def test_it_speaks_no_plain_http(ask: Callable[[str], str]) -> None:
    # Go's server says so; another one hangs up.
    assert ask("none") in ("HTTP/1.0 400", "HTTP/1.1 400", "")


def test_it_refuses_a_client_without_a_certificate(ask: Callable[[str], str]) -> None:
    # An alert of TLS, by its name in OpenSSL: ..._ALERT_CERTIFICATE_REQUIRED or ..._BAD_CERTIFICATE.
    assert re.fullmatch(r"\w+_ALERT_\w*CERTIFICATE\w*", ask("TLSv1_3"))


@pytest.mark.parametrize("version", ["TLSv1_1", "TLSv1_2"])
def test_it_speaks_no_older_tls(ask: Callable[[str], str], version: str) -> None:
    assert re.fullmatch(r"\w+_ALERT_PROTOCOL_VERSION|NO_PROTOCOLS_AVAILABLE", ask(version))


def test_nothing_of_it_runs_as_root(host: Host, exporter: Unit) -> None:
    pids = ",".join(str(pid) for pid in exporter.pids())
    users = set(host.check_output("ps -o user= -p %s", pids).split())
    assert users == {exporter.property("User")}
    assert users != {"root"}


def test_it_runs_as_a_user_without_login(host: Host, exporter: Unit) -> None:
    user = host.user(exporter.property("User"))
    assert user.shell == "/usr/sbin/nologin"
    assert user.password.startswith(("!", "*"))


def test_the_kernel_gives_it_no_privilege(exporter: Unit) -> None:
    status = exporter.kernel_says()
    found = {key: status[key] for key in ("NoNewPrivs", "CapEff", "CapBnd", "Seccomp")}
    assert found == {"NoNewPrivs": "1", "CapEff": "0" * 16, "CapBnd": "0" * 16, "Seccomp": "2"}


def test_it_is_shut_in(exporter: Unit) -> None:
    assert exporter.exposure() <= EXPOSURE


def test_it_has_no_gpu_of_its_own(host: Host, exporter: Unit) -> None:
    # /dev as the process sees it. Two engines on one GPU would fight for its counters.
    devices = host.check_output("ls /proc/%s/root/dev", exporter.property("MainPID")).split()
    assert "null" in devices
    assert [name for name in devices if name.startswith("nvidia")] == []


def test_it_asks_the_host_engine(unit: Callable[[str], Unit], words: list[str]) -> None:
    engine = unit("nvidia-dcgm.service")
    assert words[words.index("--remote-hostengine-info") + 1] in engine.listens_on()


def test_it_comes_back_after_a_failure(exporter: Unit) -> None:
    assert exporter.property("Restart") == "always"


def test_only_the_exporter_reads_the_private_key(host: Host, exporter: Unit) -> None:
    for path, mode in ((FOLDER, 0o750), (f"{FOLDER}/tls.key", 0o640)):
        file = host.file(path)
        assert (file.mode, file.user, file.group) == (mode, "root", exporter.property("Group")), path
        # nobody stands for every other service of the host.
        assert host.run("runuser -u nobody -- test -r %s", path).rc == 1, path


def test_the_certificate_is_good_for_another_week(host: Host) -> None:
    if not host.exists("openssl"):
        pytest.skip("the host has no openssl to read the certificate with")
    done = host.run(f"openssl x509 -noout -enddate -checkend 604800 -in {FOLDER}/tls.crt")
    assert done.rc == 0, done.stdout


def test_a_monitoring_server_gets_every_counter_of_every_gpu(host: Host, exporter: Unit, address: str) -> None:
    """From the machine that the tests run on, which must be in the monitoring zone, as a monitoring server does it."""
    pair = [os.environ.get(name, "") for name in ("QUENCH_CLIENT_CERT", "QUENCH_CLIENT_KEY")]
    if not all(pair):
        pytest.skip("QUENCH_CLIENT_CERT and QUENCH_CLIENT_KEY name no certificate that the exporter would let in")
    context = ssl.create_default_context(cadata=host.file(f"{FOLDER}/tls.crt").content_string)
    # The exporter's own certificate is what is trusted here, and not the CA above it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_cert_chain(*pair)
    with urllib.request.urlopen(f"https://{address}/metrics", context=context, timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, set[str]] = {}
    for name, gpu in re.findall(r'^(DCGM_\w+)\{[^}]*?\bgpu="(\d+)"', text, re.MULTILINE):
        found.setdefault(name, set()).add(gpu)
    rows = [line.split(", ") for line in host.file(f"{FOLDER}/counters.csv").content_string.splitlines()]
    wanted = {row[0] for row in rows if len(row) > 2 and not row[0].startswith("#") and row[1] != "label"}
    assert wanted - found.keys() - set(filter(NOT_EVERYWHERE.search, wanted)) == set()
    listed = host.check_output("nvidia-smi --query-gpu=index --format=csv,noheader").split()
    assert found["DCGM_FI_DEV_GPU_TEMP"] == set(listed), exporter.journal()
