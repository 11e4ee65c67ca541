"""Make and check ed25519 signatures, and read keys from PEM files and lists.

Imported inside functions elsewhere, because cryptography takes 0.1 s to import.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from jobs.errors import Fault, InputError

MAX_KEY_FILE_BYTES = 1 << 20
MAKE_PRIVATE_KEY = "Create one: openssl genpkey -algorithm ed25519 -out key.pem."
MAKE_PUBLIC_KEY = "Create one: openssl pkey -in key.pem -pubout -out key.pub.pem."
INLINE_PREFIX = "ed25519:"

_PEM = re.compile(rb"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----", re.DOTALL)


class Signer:
    """Signs with an ed25519 key, which it never shows."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, data: bytes) -> str:
        """Return the signature of `data` in base64."""
        return base64.b64encode(self._key.sign(data)).decode()


def load_signer(path: Path, *, setting: str = "SLORA_SIGNING_KEY", private: bool = False) -> Signer:
    """Return the signer of the private key in a PEM file. Raise InputError.

    With `private`, the file may be readable by its owner only.
    """
    try:
        mode = os.stat(path).st_mode
        key = load_pem_private_key(_read_key_file(path), password=None)
    except (OSError, ValueError, TypeError) as error:
        problem = f"{path} contains no readable private key"
        raise InputError([Fault(setting, problem, MAKE_PRIVATE_KEY)]) from error
    if not isinstance(key, Ed25519PrivateKey):
        problem = f"{path} contains a key that is not ed25519"
        raise InputError([Fault(setting, problem, MAKE_PRIVATE_KEY)])
    if private and stat.S_IMODE(mode) & 0o077:
        problem = f"others may read {path}, whose mode is {stat.S_IMODE(mode):04o}"
        raise InputError([Fault(setting, problem, f"Run chmod 600 {path}.")])
    return Signer(key)


def load_public_keys(path: Path, *, setting: str) -> tuple[bytes, ...]:
    """Return all public keys of a PEM file, raw. Raise InputError if one is not ed25519."""
    try:
        blocks = _PEM.findall(_read_key_file(path))
        keys = [load_pem_public_key(block) for block in blocks]
    except (OSError, ValueError, TypeError) as error:
        problem = f"{path} contains no readable public key"
        raise InputError([Fault(setting, problem, MAKE_PUBLIC_KEY)]) from error
    if not keys:
        problem = f"{path} contains no readable public key"
        raise InputError([Fault(setting, problem, MAKE_PUBLIC_KEY)])
    raw = list[bytes]()
    for key in keys:
        if not isinstance(key, Ed25519PublicKey):
            problem = f"{path} contains a key that is not ed25519"
            raise InputError([Fault(setting, problem, MAKE_PUBLIC_KEY)])
        raw.append(key.public_bytes(Encoding.Raw, PublicFormat.Raw))
    return tuple(raw)


def parse_public_keys(items: Iterable[str], *, setting: str) -> tuple[bytes, ...]:
    """Return the keys of a list whose items are `ed25519:BASE64` or PEM files. Raise InputError."""
    keys = list[bytes]()
    for item in filter(None, (item.strip() for item in items)):
        if item.startswith(INLINE_PREFIX):
            keys.append(_decode_key(item, setting))
        else:
            keys += load_public_keys(Path(os.path.expanduser(item)), setting=setting)
    if not keys:
        raise InputError([Fault(setting, "it names no public key", MAKE_PUBLIC_KEY)])
    return tuple(dict.fromkeys(keys))


def format_public_key(key: bytes) -> str:
    """Return a public key as an item of a list: `ed25519:BASE64`."""
    return INLINE_PREFIX + base64.b64encode(key).decode()


def find_signer_key(keys: Iterable[bytes], data: bytes, signature: str) -> bytes | None:
    """Return the key that made the signature (base64) of `data`, or None."""
    try:
        raw = base64.b64decode(signature, validate=True)
    except (ValueError, binascii.Error):
        return None
    for key in keys:
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(raw, data)
            return key
        except InvalidSignature:
            continue
    return None


def _read_key_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_KEY_FILE_BYTES)


def _decode_key(item: str, setting: str) -> bytes:
    try:
        raw = base64.b64decode(item.removeprefix(INLINE_PREFIX), validate=True)
        Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, binascii.Error) as error:
        problem = f"{item[:60]!a} is not {INLINE_PREFIX} and 32 bytes in base64"
        raise InputError([Fault(setting, problem, "Or name a PEM file.")]) from error
    return raw
