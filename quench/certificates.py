"""A server's certificate and key, looked at before they are sent anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from quench.contracts import Certificate
from quench.problems import Problem
from quench.secrets import SecretRef, SecretUnavailable


def text(path: str) -> str:
    """A certificate and its chain, in PEM, from a file on the machine that runs this."""
    return Path(path).expanduser().read_text()


def problems(
    host: str, prefix: str, path: str, private_key: SecretRef, *, name: str, name_key: str
) -> Iterator[Problem]:
    """What is wrong with `<prefix>_certificate` and `<prefix>_private_key`.

    Args:
        path: the certificate's file.
        name: name or address that clients know the server by.
        name_key: the setting that holds the name.
    """
    key = f"{prefix}_certificate"
    try:
        certificate = x509.load_pem_x509_certificates(text(path).encode())[0]
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "there is no such user"
        yield Problem(host, key, f"{path}: {reason}", "put the certificate there")
        return
    except ValueError:
        yield Problem(host, key, f"{path} is no PEM certificate", "convert it: openssl x509")
        return
    if "PRIVATE KEY" in text(path):
        yield Problem(
            host,
            key,
            f"{path} holds a private key beside the certificate, which everyone on the host may read",
            "give the certificate and its chain alone",
        )
    now = datetime.now(UTC)
    if certificate.not_valid_after_utc <= now:
        when = certificate.not_valid_after_utc.date()
        yield Problem(host, key, f"{path} expired on {when}", "renew it")
    if certificate.not_valid_before_utc > now:
        when = certificate.not_valid_before_utc.date()
        yield Problem(host, key, f"{path} is not valid before {when}", "check the clock and the file")
    if not _covers(certificate, name):
        yield Problem(host, key, f"{path} does not carry the name {name}", f"have it issued for {name_key}")
    try:
        private = load_pem_private_key(private_key.resolve().encode(), password=None)
    except SecretUnavailable:
        return  # said for every secret alike, by the role decorator
    except (ValueError, TypeError):
        yield Problem(
            host,
            f"{prefix}_private_key",
            "is no PEM private key without a password",
            "convert it: openssl pkey",
        )
        return
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        yield Problem(host, f"{prefix}_private_key", "does not belong to the certificate", "give the pair")


def client_problems(host: str, key: str, path: str, name: str) -> Iterator[Problem]:
    """Why a server that knows its clients by the subject `CN=NAME` would not take a certificate for that of a client.

    One that cannot be read is no matter here: `problems` says so.
    """
    try:
        certificate = x509.load_pem_x509_certificates(text(path).encode())[0]
    except (OSError, RuntimeError, ValueError):
        return
    remedy = "have it issued as `quench ca issue --client` does"
    subject = certificate.subject.rfc4514_string()
    if _covers(certificate, name) and subject != f"CN={name}":
        yield Problem(host, key, f"{path} has the subject {subject!r}, and nodes know CN={name}", remedy)
    with suppress(x509.ExtensionNotFound):
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
            yield Problem(host, key, f"{path} is not for clients: it lacks the usage clientAuth", remedy)


def source_problems(
    host: str, prefix: str, path: str | None, private_key: SecretRef | None, issued: Certificate, name: str
) -> Iterator[Problem]:
    """Why a server has not exactly one certificate: a file, or one that the host has got by itself."""
    key = f"{prefix}_certificate"
    if not issued.certificate:
        if not path:
            yield Problem(host, key, "is not set", "name the certificate's file, or an ACME CA in acme_directory")
        if private_key is None:
            yield Problem(host, f"{prefix}_private_key", "is not set", "name the key of the certificate")
        return
    for setting, value in ((key, path), (f"{prefix}_private_key", private_key)):
        if value:
            yield Problem(host, setting, "is set beside acme_directory", "choose one of them")
    if name not in issued.names:
        yield Problem(host, "acme_names", f"{name} is not among them", f"add {prefix}_server_name")


def authority_problems(host: str, key: str, path: str) -> Iterator[Problem]:
    """What is wrong with the certificate of a CA, of which a setting names the file."""
    if not path:
        yield Problem(host, key, "is not set", "name the CA's certificate")
        return
    try:
        found = text(path)
        x509.load_pem_x509_certificates(found.encode())
        if "PRIVATE KEY" in found:
            what = f"{path} holds a private key beside the certificate"
            yield Problem(host, key, what, "give the certificate alone")
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "there is no such user"
        yield Problem(host, key, f"{path}: {reason}", "put the CA's certificate there")
    except ValueError:
        yield Problem(host, key, f"{path} is no PEM certificate", "convert it: openssl x509")


def _covers(certificate: x509.Certificate, name: str) -> bool:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    names = [*extension.get_values_for_type(x509.DNSName)]
    names += [str(address) for address in extension.get_values_for_type(x509.IPAddress)]
    return name in names or f"*.{name.partition('.')[2]}" in names
