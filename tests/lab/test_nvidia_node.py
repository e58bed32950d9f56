"""A whole inference node with GPUs: what it serves, and what its exporter tells a monitoring server over the network.

Simulated: GPUs, driver, DCGM, the exporter. The engine is the stand-in.
"""

from __future__ import annotations

import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpus import provision
from support import DEPLOY, MODEL, STOCK, Node, hosts_of

from quench import ca
from quench.lab.state import HostSpec

# An address of the host that is not on the monitoring network.
OTHER = "198.19.77.1"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    for nodes in hosts_of("test-nvidia", [HostSpec("exporter", "debian-12", "2xl4", packages=STOCK)]):
        run = provision(list(nodes.values()), tmp_path_factory.mktemp("first"), deploy=DEPLOY)
        assert run.code == 0, run.text[-4000:]
        nodes["exporter"].root(f"ip address add {OTHER}/32 dev lo")
        yield nodes["exporter"]


def client(node: Node, folder: Path | None) -> ssl.SSLContext:
    """What a monitoring server brings along, with a certificate that the CA in the folder has issued."""
    context = ssl.create_default_context(cafile=node.ca)
    if folder is not None:
        context.load_cert_chain(*ca.issue(folder, ["prometheus.test"], client=True))
    return context


def scrape(node: Node, folder: Path | None, scheme: str = "https") -> str:
    url = f"{scheme}://{node.address}:9400/metrics"
    with urllib.request.urlopen(url, context=client(node, folder), timeout=10) as answer:
        return str(answer.read().decode())


def test_the_node_serves_and_the_second_run_changes_nothing(node: Node, tmp_path: Path) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    assert node.request("/v1/chat/completions", key=node.key, body=body)[0] == 200
    run = provision([node], tmp_path, "--json", deploy=DEPLOY)
    assert (run.code, run.totals["success"]) == (0, 0), run.text[-3000:]


def test_every_counter_of_the_list_is_there_for_each_gpu(node: Node) -> None:
    text = scrape(node, node.lab.folder / "ca")
    rows = node.root("cat /etc/dcgm-exporter/quench/counters.csv").splitlines()
    listed = [row.split(",") for row in rows if not row.startswith("#")]
    counters = [row[0].strip() for row in listed if row[1].strip() != "label"]
    assert len(counters) > 25
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    missing = [
        (name, gpu) for name in counters for gpu in ("0", "1")
        if not any(line.startswith(f"{name}{{") and f'gpu="{gpu}"' in line for line in samples)
    ]  # fmt: skip
    assert missing == []


def test_without_a_certificate_of_the_zones_ca_nobody_is_answered(node: Node, tmp_path: Path) -> None:
    with pytest.raises((OSError, ssl.SSLError)):
        scrape(node, None)
    ca.create(tmp_path / "other", "somebody else")
    with pytest.raises((OSError, ssl.SSLError)):
        scrape(node, tmp_path / "other")


def test_there_is_no_answer_without_tls(node: Node) -> None:
    with pytest.raises((OSError, urllib.error.URLError)):
        scrape(node, None, scheme="http")


def test_tls_before_1_3_is_refused(node: Node) -> None:
    context = client(node, node.lab.folder / "ca")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection((node.address, 9400), timeout=10) as plain, pytest.raises((OSError, ssl.SSLError)):
        context.wrap_socket(plain, server_hostname=node.address)


def test_no_other_address_of_the_host_has_the_port_open(node: Node) -> None:
    # From the host itself, where no network is in the way.
    for address in (OTHER, "127.0.0.1"):
        done = node.root(f"python3 -c 'import socket; socket.create_connection((\"{address}\", 9400), 5)' 2>&1; true")
        assert "ConnectionRefusedError" in done, address


def test_the_host_engine_is_not_to_be_reached_from_outside(node: Node) -> None:
    with pytest.raises(OSError):
        socket.create_connection((node.address, 5555), timeout=5)


def test_a_daemon_reload_takes_no_gpu_from_a_sandboxed_unit(node: Node) -> None:
    # Without a rule there is no GPU to be taken away.
    shut = "systemd-run --quiet --wait --collect -p DevicePolicy=closed -p User=nobody sh -c ': </dev/nvidia0'"
    assert node.root(f"{shut} && echo open || echo shut") == "shut"
    # As the engines' own unit has them. The lab's device files can be opened like the real ones, and are no GPUs.
    rules = " ".join(f"-p 'DeviceAllow=/dev/{name} rw'" for name in ("nvidia0", "nvidiactl", "nvidia-uvm"))
    node.root(
        "systemd-run --quiet --unit=gpu-user -p DevicePolicy=closed -p User=nobody "
        f"{rules} sh -c 'while sleep 0.1; do : </dev/nvidia0 && : </dev/nvidiactl || exit 1; done'"
    )
    before = node.root("systemctl show -p MainPID --value gpu-user nvidia-dcgm nvidia-dcgm-exporter")
    for _ in range(3):
        node.root("systemctl daemon-reload; sleep 0.5")
    assert node.root("systemctl is-active gpu-user") == "active"
    assert node.root("systemctl show -p MainPID --value gpu-user nvidia-dcgm nvidia-dcgm-exporter") == before
    assert scrape(node, node.lab.folder / "ca")
    node.root("systemctl stop gpu-user")


def test_an_exporter_that_is_no_longer_wanted_goes(node: Node, tmp_path: Path) -> None:
    run = provision([node], tmp_path, deploy=DEPLOY, dcgm_exporter_address=None)
    assert run.code == 0, run.text[-3000:]
    with pytest.raises(OSError):
        socket.create_connection((node.address, 9400), timeout=5)
    assert node.root("ls /etc/dcgm-exporter/quench/tls.key 2>&1; true").endswith("No such file or directory")
