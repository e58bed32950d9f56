"""Have a certificate from an ACME CA."""

from __future__ import annotations

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
    packages,
    role,
    service,
)
from roles.acme.files import CERTIFICATE, PACKAGES, RENEW, TIMER, USER, files, issued, wanted
from roles.acme.settings import AcmeSettings


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
    packages(PACKAGES, hold_back=["certbot.timer"])
    account(USER, home="/nonexistent")
    managed = files(settings, reloads)
    install("acme", managed)
    # A host may have had it before Quench. What the roles after this one bring has no use for the port.
    ensure(
        "Stop the nginx of the package, which has port 80",
        "case $(systemctl show --property=FragmentPath --value nginx.service) in "
        "/lib/* | /usr/lib/*) systemctl is-active nginx.service | grep -x active ;; esac; true",
        "systemctl stop nginx.service",
    )
    ensure(
        f"Have a certificate for {', '.join(settings.names)}",
        f'[ "$(cat {CERTIFICATE}.wanted 2>/dev/null)" = {wanted(settings)} ] && '
        f"openssl x509 -noout -checkend 0 -in {CERTIFICATE} >/dev/null || echo none",
        f"systemctl daemon-reload && systemctl start {RENEW} || "
        f"{{ journalctl --unit {RENEW} --lines 20 --no-pager --output cat >&2; exit 1; }}",
    )
    service(TIMER, managed)
    return issued(settings)
