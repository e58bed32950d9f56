"""Integrity of a node: AIDE finds who changes files beside Quench and the package manager, and what is found stays so.
A certificate that ends soon is found as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Node, run_pyinfra, write_inventory

from quench import ca

# What would change files, or take the baseline, in the midst of a test.
TIMERS = "aide-baseline.timer dailyaidecheck.timer apt-daily.timer apt-daily-upgrade.timer"


@pytest.fixture(scope="module")
def baselined(stand_in_node: Node) -> Iterator[Node]:
    stand_in_node.root(f"systemctl stop {TIMERS}")
    # Of now, and not of before what other tests have done to this host.
    stand_in_node.root("rm -rf /var/lib/aide; systemctl start aide-baseline.service && test -s /var/lib/aide/aide.db")
    yield stand_in_node
    stand_in_node.root(f"systemctl start {TIMERS}")


def check(node: Node) -> bool:
    """Whether the daily comparison finds nothing."""
    return node.root("systemctl start dailyaidecheck.service && echo same; true") == "same"


def baseline(node: Node) -> str:
    """When the baseline was taken last, after what its timer starts has been done."""
    node.root("systemctl start aide-baseline.service")
    return node.root("stat -c %y /var/lib/aide/aide.db")


def test_nothing_is_found_where_nothing_has_changed(baselined: Node) -> None:
    assert check(baselined)


def test_the_baseline_is_not_taken_anew_for_nothing(baselined: Node) -> None:
    assert baseline(baselined) == baseline(baselined)


def test_a_changed_file_is_found_and_no_new_baseline_hides_it(baselined: Node) -> None:
    taken = baseline(baselined)
    baselined.root("echo x >/usr/bin/not-of-a-package")
    try:
        assert not check(baselined)
        assert "/usr/bin/not-of-a-package" in baselined.root("journalctl --unit dailyaidecheck --output cat")
        # Even when Quench or the package manager changes something meanwhile.
        baselined.root("echo x >/var/lib/quench/manifest/other")
        assert baseline(baselined) == taken
    finally:
        baselined.root("rm -f /usr/bin/not-of-a-package /var/lib/quench/manifest/other")
    assert check(baselined)


@pytest.fixture(scope="module")
def brought(baselined: Node) -> Iterator[Node]:
    """A host to which Quench has brought a file, as its manifest tells."""
    write_as_quench(baselined, "x")
    yield baselined
    take_away(baselined)


def write_as_quench(node: Node, text: str) -> None:
    node.root(f"echo {text} >/etc/quench-test && echo {text} >/var/lib/quench/manifest/other")


def take_away(node: Node) -> None:
    node.root("rm -f /etc/quench-test /var/lib/quench/manifest/other")


def test_what_quench_brings_is_no_alarm_before_its_baseline_is_taken(brought: Node) -> None:
    taken = brought.root("stat -c %y /var/lib/aide/aide.db")
    assert check(brought)
    assert brought.root("stat -c %y /var/lib/aide/aide.db") != taken


def test_what_quench_changes_and_takes_away_becomes_the_baseline(brought: Node) -> None:
    taken = brought.root("stat -c %y /var/lib/aide/aide.db")
    write_as_quench(brought, "y")
    changed = baseline(brought)
    assert changed != taken
    assert check(brought)
    take_away(brought)
    assert baseline(brought) != changed
    assert check(brought)


def failed(node: Node) -> bool:
    """Whether monitoring sees a certificate that ends soon."""
    return node.root("systemctl is-failed certificate-expiry.service", check=False) == "failed"


def test_a_certificate_that_ends_soon_is_seen_until_a_run_brings_another(stand_in_node: Node, tmp_path: Path) -> None:
    stand_in_node.root("systemctl start certificate-expiry.service")
    assert not failed(stand_in_node)
    ca.create(tmp_path, "Another CA")
    certificate, key = ca.issue(tmp_path, [stand_in_node.address], days=5)
    tls = {"nginx_certificate": str(certificate), "nginx_private_key": f"file:{key}"}
    inventory = write_inventory(tmp_path, {"*": tls})
    try:
        run = run_pyinfra(stand_in_node, "-y", inventory=inventory)
        assert run.code == 0, run.text[-4000:]
        stand_in_node.root("systemctl start certificate-expiry.service", check=False)
        assert failed(stand_in_node)
        journal = stand_in_node.root("journalctl --unit certificate-expiry --output cat")
        assert f"/etc/nginx/quench/tls.crt: CN={stand_in_node.address} is valid until " in journal
        # A run that brings no other certificate has nothing to change, and hides nothing.
        run = run_pyinfra(stand_in_node, "-y", "--json", inventory=inventory)
        assert run.code == 0, run.text[-4000:]
        assert run.totals["success"] == 0
        assert failed(stand_in_node)
    finally:
        run = run_pyinfra(stand_in_node, "-y")
    assert run.code == 0, run.text[-4000:]
    assert not failed(stand_in_node)
