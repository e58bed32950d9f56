"""ACME: the certificate is a pair, lasts, and is renewed without root; nobody listens on port 80."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Unit

EXPOSURE = 2.0
CERTIFICATE = "/var/lib/quench-acme/tls/tls.crt"
KEY = f"{CERTIFICATE}.key"


@pytest.fixture(scope="module")
def renew(unit: Callable[[str], Unit]) -> Unit:
    return unit("acme-renew.service")


def test_certificate_and_key_are_a_pair(host: Host) -> None:
    public = host.check_output("openssl x509 -noout -pubkey -in %s", CERTIFICATE)
    assert public == host.check_output("openssl pkey -pubout -in %s", KEY)


def test_the_certificate_lasts(host: Host) -> None:
    # The days of acme_renew_days, less two of the timer's attempts.
    seconds = host.check_output("sed -n 's/.*-checkend \\([0-9]*\\).*/\\1/p' /usr/local/lib/quench/acme-renew")
    least = str(int(seconds) - 2 * 86400)
    assert host.run("openssl x509 -noout -checkend %s -in %s", least, CERTIFICATE).rc == 0


def test_the_key_is_for_root_and_the_service(host: Host) -> None:
    key = host.file(KEY)
    assert (key.mode, key.user, key.group) == (0o640, "root", "acme")


def test_only_root_can_change_what_the_service_reads(host: Host) -> None:
    others = "/var/lib/quench-acme -path /var/lib/quench-acme/certbot -prune -o ! -type l"
    assert host.check_output(f"find {others} ! -user root -print") == ""
    assert host.check_output(f"find {others} -perm /022 -print") == ""


def test_renewal_is_waited_for(unit: Callable[[str], Unit]) -> None:
    timer = unit("acme-renew.timer")
    assert (timer.property("ActiveState"), timer.property("UnitFileState")) == ("active", "enabled")


def test_renewal_runs_without_root_in_a_sandbox(renew: Unit) -> None:
    assert renew.property("User") == "acme"
    assert renew.exposure() <= EXPOSURE


def test_nobody_listens_on_port_80(host: Host) -> None:
    assert host.check_output("ss -Hltn 'sport = :80'") == ""
