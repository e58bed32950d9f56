"""Files of the acme role."""

from __future__ import annotations

import hashlib

from quench import Certificate, Managed, ManagedDirectory, ManagedFile, certificates, template
from roles.acme.settings import AcmeSettings

RENEW = "acme-renew.service"
TIMER = "acme-renew.timer"
USER = "acme"
# certbot: speaks the protocol. openssl: how long a certificate lasts.
PACKAGES = ["certbot", "openssl"]
# It would ask the CA as root, outside the sandbox.
UNWANTED = ["certbot.timer"]
# Not /var/lib/acme, which is acmetool's: it goes when the host goes back to files.
_FOLDER = "/var/lib/quench-acme"
# HAProxy looks for the key under the certificate's name with .key behind it: ssl-load-extra-files.
CERTIFICATE = f"{_FOLDER}/tls/tls.crt"
KEY = f"{CERTIFICATE}.key"
_SCRIPTS = "/usr/local/lib/quench"


def issued(settings: AcmeSettings) -> Certificate:
    """What the CA gives, as its reader finds it on the host."""
    return Certificate(CERTIFICATE, KEY, USER, tuple(settings.names))


def wanted(settings: AcmeSettings) -> str:
    """What a certificate was asked for with. Another CA or other names need another one at once."""
    return hashlib.sha256(" ".join([str(settings.directory), *settings.names]).encode()).hexdigest()


def files(settings: AcmeSettings, reloads: str) -> list[Managed]:
    """All files of the role, for a service that reads a new certificate when it is reloaded."""
    values = {
        "settings": settings,
        "reloads": reloads,
        "folder": _FOLDER,
        # A folder for each CA: an account is known to one alone.
        "certbot": f"{_FOLDER}/certbot/{hashlib.sha256(str(settings.directory).encode()).hexdigest()[:16]}",
        "wanted": wanted(settings),
        "scripts": _SCRIPTS,
        "user": USER,
    }
    authority = (
        [ManagedFile("/etc/quench-acme/directory-ca.crt", certificates.text(settings.directory_ca))]
        if settings.directory_ca
        else []
    )
    return [
        ManagedDirectory("/etc/quench-acme", group=USER, mode=0o750),
        # What root writes, and what certbot writes, which is not root. Nobody else may write in either.
        ManagedDirectory(_FOLDER),
        ManagedDirectory(f"{_FOLDER}/certbot", owner=USER, group=USER, mode=0o700),
        *authority,
        ManagedFile(
            "/etc/quench-acme/certbot.ini",
            template("acme", "/etc/quench-acme/certbot.ini", values),
            # Not for its group: that is the service's, which needs the certificate's key and not the account's.
            owner=USER,
            group=USER,
            mode=0o400,
            secrets=(settings.account_key,) if settings.account_key else (),
        ),
        *(
            ManagedFile(
                f"{_SCRIPTS}/{name}",
                "#!/bin/sh\n" + template("acme", f"{_SCRIPTS}/{name}", values),
                mode=0o755,
                check=f"sh -n {_SCRIPTS}/{name}",
            )
            for name in ("acme-renew", "acme-take")
        ),
        *(
            ManagedFile(
                f"/etc/systemd/system/{unit}",
                template("acme", f"/etc/systemd/system/{unit}", values),
                check=f"systemd-analyze verify --man=no {unit}",
                restarts=TIMER,
            )
            for unit in (RENEW, TIMER)
        ),
    ]
