"""A small certificate authority of one's own, for the lab and for sites that have none."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CERTIFICATE, KEY = "ca.crt", "ca.key"


def create(folder: Path, name: str, *, days: int = 3650) -> None:
    """Make a CA: `ca.crt` and `ca.key` in a folder.

    Raises:
        FileExistsError: if there is one. It is never replaced: all it issued would be worthless.
    """
    for path in (folder / KEY, folder / CERTIFICATE):
        if path.exists():
            raise FileExistsError(f"{path} is there already")
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(subject, subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_key(folder / KEY, key)
    (folder / CERTIFICATE).write_bytes(certificate.public_bytes(Encoding.PEM))


def issue(folder: Path, names: Sequence[str], *, days: int = 90, client: bool = False) -> tuple[Path, Path]:
    """Issue a server certificate for DNS names and addresses. Returns its path and that of its key.

    Args:
        folder: the CA's folder; the files NAME.crt and NAME.key of the first name are put there.
        names: at least one. Clients look at these alone, not at the common name (RFC 9525).
        days: validity, from an hour ago, so that a clock that is a little slow accepts it.
        client: a certificate for a client instead, such as a monitoring server.

    Raises:
        ValueError: for a first name whose files would be those of the CA, or in another folder.
        OSError: if the folder has no CA that can be read.
    """
    # Not every file system tells CA from ca.
    if names[0].casefold() == "ca" or Path(names[0]).name != names[0]:
        raise ValueError(f"{names[0]!r} cannot be the first name: its files would not be its own")
    ca = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
    ca_key = load_pem_private_key((folder / KEY).read_bytes(), password=None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    certificate = (
        _builder(subject, ca.subject, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    paths = folder / f"{names[0]}.crt", folder / f"{names[0]}.key"
    _write_key(paths[1], key)
    paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    return paths


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    start = datetime.now(UTC) - timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    # The mode above counts for a new file only.
    os.fchmod(descriptor, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
