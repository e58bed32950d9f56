"""/tmp becomes a file system of its own, from which no program runs, with a boot and not under services that run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fleets import wait
from support import STOCK, Node, hosts_of, run_pyinfra

from quench.lab import fleet
from quench.lab.state import HostSpec

MOUNTED = "findmnt --noheadings --output OPTIONS --mountpoint /tmp"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A host whose /tmp is a folder of the root's, as Debian 12 makes it, after one run."""
    for hosts in hosts_of("test-mounts", [HostSpec("node1", "debian-12", packages=STOCK)]):
        assert hosts["node1"].root(MOUNTED, check=False) == ""
        run = run_pyinfra(hosts["node1"], "-y")
        assert run.code == 0, run.text[-4000:]
        yield hosts["node1"]


def test_services_with_a_private_tmp_can_be_restarted_and_reloaded(node: Node) -> None:
    # systemd would start tmp.mount for them (RequiresMountsFor), and each of the others would lose what it has there.
    node.root("systemctl daemon-reload; systemctl restart chrony.service nginx.service; systemctl start tmp.mount")
    node.root("systemctl reload nginx.service")
    assert node.root(MOUNTED, check=False) == ""


def test_after_a_boot_no_program_runs_from_there_and_all_is_as_before(node: Node) -> None:
    fleet.switch_off(node.lab, node.name)
    fleet.switch_on(node.lab, node.name)
    assert wait(lambda: node.root("systemctl is-system-running", check=False) in ("running", "degraded"), 120)
    assert {"nosuid", "nodev", "noexec"} <= set(node.root(MOUNTED).split(","))
    said = node.root(
        "printf '#!/bin/sh\\necho ran\\n' >/tmp/program; chmod 755 /tmp/program; /tmp/program 2>&1", check=False
    )
    assert "Permission denied" in said
    run = run_pyinfra(node, "-y", "--json")
    assert (run.code, run.totals["success"]) == (0, 0), run.text[-3000:]
    assert wait(lambda: node.request("/v1/models", key=node.key)[0] == 200, 60)
    # debconf asks its questions by programs that apt unpacks elsewhere.
    assert node.root("apt-config dump APT::ExtractTemplates::TempDir").endswith('"/var/cache/apt";')
