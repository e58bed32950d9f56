"""Just enough of OpenPGP to know a public key by its fingerprint."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from quench.problems import Problem


def key_problems(host: str, prefix: str, path: str, wanted: str) -> Iterator[Problem]:
    """What is wrong with a repository's public key, `<prefix>_repository_key`.

    Args:
        path: the key's file on the machine that runs this.
        wanted: the fingerprint that it must have.
    """
    key = f"{prefix}_repository_key"
    try:
        found = fingerprint(Path(path).expanduser().read_text())
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "there is no such user"
        what = f"{path}: {reason}" if path else "is not set"
        yield Problem(host, key, what, "put the repository's public key there")
    except UnicodeDecodeError:
        yield Problem(host, key, f"{path} is not in ASCII armor", "convert it: gpg --import, then gpg --armor --export")
    except ValueError as error:
        yield Problem(host, key, f"{path}: {error}", "take the key as its owner publishes it")
    else:
        if found != wanted:
            remedy = f"take the key {wanted}, or set {prefix}_repository_fingerprint if you trust this one"
            yield Problem(host, key, f"{path} is the key {found}", remedy)


def fingerprint(armored: str) -> str:
    """Fingerprint of the first public key in an ASCII-armored file: RFC 4880, sections 4.2, 6.2 and 12.2.

    Raises:
        ValueError: if the text holds no version 4 public key, or a secret one.
    """
    if "PRIVATE KEY BLOCK" in armored:
        raise ValueError("holds a private key")
    if armored.count("BEGIN PGP PUBLIC KEY BLOCK") > 1:
        raise ValueError("holds several keys, of which all would be trusted")
    block = re.search(r"-----BEGIN PGP PUBLIC KEY BLOCK-----.*?\r?\n\r?\n(.*?)-----END", armored, re.DOTALL)
    if block is None:
        raise ValueError("holds no public key in ASCII armor")
    # The line that begins with `=` is a checksum.
    text = "".join(line.strip() for line in block[1].splitlines() if not line.startswith("="))
    try:
        data = base64.b64decode(text, validate=True)
        tag, length, start = _header(data)
        keys, position = 0, 0
        while position < len(data):
            other, size, begin = _header(data[position:])
            keys += other == 6
            position += begin + size
    except (binascii.Error, IndexError) as error:
        raise ValueError("holds no readable public key") from error
    body = data[start : start + length]
    if keys > 1:
        raise ValueError("holds several keys, of which all would be trusted")
    if tag != 6 or len(body) != length or body[:1] != b"\x04":
        raise ValueError("does not begin with a public key of version 4")
    return hashlib.sha1(b"\x99" + length.to_bytes(2, "big") + body, usedforsecurity=False).hexdigest().upper()


def _header(data: bytes) -> tuple[int, int, int]:
    """Tag, length of the body and where it begins, of the first packet."""
    if data[0] & 0x40:
        tag, first = data[0] & 0x3F, data[1]
        if first < 192:
            return tag, first, 2
        if first < 224:
            return tag, ((first - 192) << 8) + data[2] + 192, 3
        return tag, int.from_bytes(data[2:6], "big"), 6
    size = 1 << (data[0] & 3)
    return data[0] >> 2 & 0xF, int.from_bytes(data[1 : 1 + size], "big"), 1 + size
