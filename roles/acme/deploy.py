"""Have a certificate from an ACME CA."""

from __future__ import annotations

from pathlib import Path

from pyinfra import host

from quench import (
    Certificate,
    Flow,
    Problem,
    Refused,
    account,
    allow,
    download,
    ensure,
    install,
    keep_off,
    packages,
    role,
    service,
    shell_script,
)
from roles.acme.files import CERTIFICATE, PACKAGES, RENEW, TIMER, UNWANTED, USER, files, issued, wanted
from roles.acme.settings import AcmeSettings

_ISSUE = Path(__file__).parent / "issue.sh"


@role(AcmeSettings)
def acme(settings: AcmeSettings, reloads: str) -> Certificate:
    """The certificate that a service of this host shows, before the service itself.

    Args:
        reloads: the service's unit.
    """
    if settings.directory is None:
        install("acme", [])
        return Certificate()
    if host.data.get("keepalived_addresses"):
        what = "the CA calls the names at an address that only one of the balancers has at a time"
        raise Refused(
            [Problem(host.name, "acme_directory", what, "bring the certificate as a file: haproxy_certificate")]
        )
    allow(
        download("acme", settings.directory, settings.zones, "certificates of the ACME CA"),
        Flow("acme", "in", tuple(settings.zones), 80, "the ACME CA's question whether a name leads here"),
    )
    packages(PACKAGES, hold_back=UNWANTED)
    keep_off("Keep certbot's own timer off", UNWANTED)
    account(USER, home="/nonexistent")
    managed = files(settings, reloads)
    install("acme", managed)
    words = (CERTIFICATE, wanted(settings), RENEW)
    ensure(
        f"Have a certificate for {', '.join(settings.names)}",
        shell_script(_ISSUE, "ask", *words),
        shell_script(_ISSUE, "mend", *words),
    )
    service(TIMER, managed)
    return issued(settings)
