"""AIDE on a node: who changes files beside Quench and the package manager is found, and stays found."""

from __future__ import annotations

import pytest
from support import Node


@pytest.fixture(scope="module")
def baselined(stand_in_node: Node) -> Node:
    stand_in_node.root("systemctl start aide-baseline.service && test -s /var/lib/aide/aide.db")
    return stand_in_node


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


def test_what_quench_brings_becomes_the_baseline(baselined: Node) -> None:
    taken = baseline(baselined)
    baselined.root("echo x >/etc/quench-test && echo x >/var/lib/quench/manifest/other")
    try:
        assert baseline(baselined) != taken
        assert check(baselined)
    finally:
        baselined.root("rm -f /etc/quench-test /var/lib/quench/manifest/other")
    baseline(baselined)
    assert check(baselined)
