"""A certificate from an ACME CA of the house. The CA is pebble, the ACME project's own test server, from Debian."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from fleets import lost, wait
from support import (
    BALANCER_DEPLOY,
    CHECKOUT,
    DEPLOY,
    MODEL,
    STOCK,
    Node,
    Run,
    hosts_of,
    run_pyinfra,
    write,
    write_inventory,
)

from quench import ca
from quench.lab import fleet
from quench.lab.state import HostSpec
from tests.load.load import Load, running

NAME = "llm.test"
CONFIG = {
    "listenAddress": "0.0.0.0:14000",
    "managementListenAddress": "0.0.0.0:15000",
    "certificate": "/etc/pebble/directory.crt",
    "privateKey": "/etc/pebble/directory.key",
    "httpPort": 80,
    "tlsPort": 443,
    "externalAccountBindingRequired": True,
    "externalAccountMACKeys": {"4711": "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"},
}


@dataclass
class House:
    """A host that serves, and the CA that it has its certificate from."""

    node: Node
    authority: Node
    changes: dict[str, Any]

    def run(self, folder: Path, *options: str, **changes: Any) -> Run:
        inventory = write_inventory(folder, {"*": {**self.changes, **changes}}, [self.node.name])
        return run_pyinfra(self.node, "-y", *options, inventory=inventory, deploy=DEPLOY)

    def root(self) -> str:
        """The certificate that pebble signs with: another one whenever it starts."""
        url = f"https://{self.authority.address}:15000/roots/0"
        context = ssl.create_default_context(cafile=self.node.ca)
        context.check_hostname = False
        with urllib.request.urlopen(url, context=context, timeout=10) as answer:
            return str(answer.read().decode())

    def shown(self) -> x509.Certificate:
        """The certificate that a client sees, if its chain leads to pebble's root and it carries the name."""
        context = ssl.create_default_context(cadata=self.root())
        with (
            socket.create_connection((self.node.address, 443), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=NAME) as connection,
        ):
            der = connection.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der)


def start(authority: Node) -> None:
    """Start pebble. It has forgotten all accounts."""
    config = {"pebble": {**CONFIG, "certificateValidityPeriod": 90 * 86400}}
    write(authority, "/etc/pebble/config.json", json.dumps(config))
    authority.root(
        "systemctl stop pebble 2>/dev/null; systemctl reset-failed pebble 2>/dev/null; "
        "systemd-run --quiet --unit=pebble -E PEBBLE_VA_NOSLEEP=1 -E PEBBLE_WFE_NONCEREJECT=0 "
        "pebble -config /etc/pebble/config.json"
    )
    assert wait(lambda: authority.root("ss -Hltn 'sport = :14000'") != "", 60)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A host after a run with files, and an ACME CA whose directory has a certificate of the lab's CA."""
    specs = [HostSpec("node1", packages=STOCK), HostSpec("ca", "debian-13", zone="storage", packages=("pebble",))]
    for hosts in hosts_of("test-acme", specs):
        node, authority = hosts["node1"], hosts["ca"]
        certificate, key = ca.issue(node.lab.folder / "ca", ["ca.test", authority.address])
        for source, name in ((certificate, "directory.crt"), (key, "directory.key")):
            authority.root("mkdir -p /etc/pebble")
            write(authority, f"/etc/pebble/{name}", source.read_text())
        authority.root(f"echo '{node.address} {NAME}' >>/etc/hosts")
        start(authority)
        folder = tmp_path_factory.mktemp("account")
        (folder / "account.key").write_text(CONFIG["externalAccountMACKeys"]["4711"])  # type: ignore[index]
        changes = {
            "acme_directory": f"https://{authority.address}:14000/dir",
            "acme_directory_ca": node.ca,
            "acme_names": [NAME],
            "acme_zones": ["storage"],
            "acme_account_id": "4711",
            "acme_account_key": f"file:{folder / 'account.key'}",
            "nginx_server_name": NAME,
            "nginx_certificate": None,
            "nginx_private_key": None,
        }
        first = run_pyinfra(node, "-y", "--limit", "node1")
        assert first.code == 0, first.text[-4000:]
        yield House(node, authority, changes)


def test_without_its_ca_a_run_changes_nothing_that_serves(house: House, tmp_path: Path) -> None:
    house.authority.root("systemctl stop pebble")
    before = house.node.root("cat /etc/nginx/nginx.conf")
    run = house.run(tmp_path)
    # It is the CA that is missing, and not the way to it, which the firewall of the run before had closed.
    assert run.code == 1
    assert "Connection refused" in run.text and "Traceback" not in run.text, run.text[-3000:]
    assert house.node.root("cat /etc/nginx/nginx.conf") == before
    assert house.node.request("/v1/models", key=house.node.key)[0] == 200
    start(house.authority)


def test_a_host_gets_its_certificate_and_a_second_run_changes_nothing(house: House, tmp_path: Path) -> None:
    run = house.run(tmp_path)
    assert run.code == 0, run.text[-4000:]
    names = house.shown().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [NAME]
    # What came as files before is gone, the key with them.
    assert house.node.root("ls /etc/nginx/quench/tls.*", check=False) == ""
    again = house.run(tmp_path, "--json")
    assert (again.code, again.totals["success"]) == (0, 0), again.text[-3000:]


def test_the_host_checks_pass(house: House, tmp_path: Path) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(fleet.ssh_config(house.node.lab))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/host", "--hosts=ssh://node1", "--sudo",
         f"--ssh-config={config}"],
        cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert "the role acme to this host" not in done.stdout  # none of its checks was skipped


def test_a_renewal_costs_no_request(house: House) -> None:
    before = house.shown().serial_number
    # As if the end were near: the unit decides by the certificate itself.
    root = house.node.lab.folder / "pebble.crt"
    root.write_text(house.root())
    house.node.root("sed -i 's/-checkend [0-9]*/-checkend 31536000/' /usr/local/lib/quench/acme-renew")
    load = Load(
        house.node.address, ca=str(root), server_name=NAME, key=house.node.key, model=MODEL,
        plain=4, plain_rate=5, streams=8, stream_rate=2,
    )  # fmt: skip
    with running(load) as tally:
        time.sleep(2)
        house.node.root("systemctl start acme-renew.service")
        assert wait(lambda: house.shown().serial_number != before, 20)  # nginx takes its time for a reload
        time.sleep(1)
    assert len(tally.requests) > 20 and lost(tally) == []
    assert len(house.node.root("ls -d /var/lib/quench-acme/pair-*").splitlines()) == 1


def test_a_renewal_that_fails_leaves_the_former_certificate_and_is_seen(house: House) -> None:
    before = house.shown().serial_number
    # pebble has its accounts in memory alone, so it stays, and the way to it goes.
    way = f"ip route {{}} unreachable {house.authority.address}/32"
    house.node.root(way.format("add"))
    try:
        assert house.node.root("systemctl start acme-renew.service 2>&1; echo $?").endswith("1")
        assert house.node.root("systemctl is-failed acme-renew.service") == "failed"
    finally:
        house.node.root(way.format("delete"))
    assert house.shown().serial_number == before
    house.node.root("systemctl start acme-renew.service")
    assert wait(lambda: house.shown().serial_number != before, 20)


def test_a_certificate_that_ends_soon_is_named(house: House, tmp_path: Path) -> None:
    said = "/usr/local/lib/quench/certificate-expiry"
    assert house.node.root(said, check=False) == ""
    # Before it is renewed at 80 days, which its CA gives 90.
    run = house.run(tmp_path, hardening_certificate_days=100, acme_renew_days=80)
    assert run.code == 0, run.text[-3000:]
    assert house.node.root(said, check=False).startswith("/var/lib/quench-acme/tls/tls.crt: ")
    assert house.node.root("grep -c -- '-checkend 6912000 ' /usr/local/lib/quench/acme-renew") == "1"


def test_port_80_is_open_to_the_cas_zone_and_only_while_it_asks(house: House) -> None:
    # From the zone of the CA nobody answers, which the kernel says at once; from any other the packets are dropped.
    knock = "timeout 3 bash -c '</dev/tcp/{}/80' 2>&1; echo $?"
    assert "Connection refused" in house.authority.root(knock.format(house.node.address))
    with pytest.raises(OSError, match="timed out"):
        socket.create_connection((house.node.address, 80), timeout=2)


def test_the_accounts_key_shows_up_nowhere(house: House, tmp_path: Path) -> None:
    secret = str(CONFIG["externalAccountMACKeys"]["4711"])  # type: ignore[index]
    run = house.run(tmp_path, "-vvv", "--diff")
    assert run.code == 0 and secret not in run.text
    assert house.node.root(f"journalctl --no-pager | grep -c '{secret}'", check=False) == "0"
    found = house.node.root(f"grep -rls '{secret}' /etc /var/lib /var/log /run /usr/local", check=False)
    assert found == "/etc/quench-acme/certbot.ini"
    assert house.node.root("stat -c '%a %U %G' /etc/quench-acme/certbot.ini") == "400 acme acme"
    # The group of the service's key opens it to nobody else.
    as_the_service = "setpriv --reuid=www-data --groups=acme cat /etc/quench-acme/certbot.ini 2>&1; true"
    assert house.node.root(as_the_service).endswith("Permission denied")


def test_a_host_goes_back_to_files(house: House, tmp_path: Path) -> None:
    run = run_pyinfra(house.node, "-y", "--limit", "node1")
    assert run.code == 0, run.text[-3000:]
    assert house.node.root("systemctl is-active acme-renew.timer", check=False) == "inactive"
    assert (
        house.node.root("ls -d /etc/quench-acme/* /usr/local/lib/quench/acme-* /var/lib/quench-acme", check=False) == ""
    )
    assert house.node.request("/v1/models", key=house.node.key)[0] == 200


def test_a_balancer_gets_its_certificate_and_renews_it(house: House, tmp_path: Path) -> None:
    """Last, since the node lets in nobody but balancers from then on."""
    lab = fleet.up_hosts("test-acme", [HostSpec("lb1", zone="dmz", packages=STOCK)], engine="stand-in")
    balancer = House(Node(lab, "lb1"), house.authority, {})
    # podman has mounted the file there, so it cannot be replaced by another.
    moved = f"sed 's/^.* {NAME}$/{balancer.node.address} {NAME}/' /etc/hosts >/run/hosts"
    house.authority.root(f"{moved}; cat /run/hosts >/etc/hosts")
    own = {key: value for key, value in house.changes.items() if key.startswith("acme_")}
    files = {"haproxy_server_name": NAME, "haproxy_certificate": None, "haproxy_private_key": None}
    inventory = write_inventory(tmp_path, {"lb1": {**own, **files}})
    words = ("-y", "--json", "--limit", "lb1")
    run = run_pyinfra(balancer.node, *words, inventory=inventory, deploy=BALANCER_DEPLOY)
    assert run.code == 0, run.text[-4000:]
    before = balancer.shown().serial_number
    again = run_pyinfra(balancer.node, *words, inventory=inventory, deploy=BALANCER_DEPLOY)
    assert (again.code, again.totals["success"]) == (0, 0), again.text[-3000:]
    balancer.node.root("sed -i 's/-checkend [0-9]*/-checkend 31536000/' /usr/local/lib/quench/acme-renew")
    balancer.node.root("systemctl start acme-renew.service")
    assert wait(lambda: balancer.shown().serial_number != before, 20)
