"""Signatures of manifests: ed25519 over the very bytes that lie in the store.

A manifest names every file's digest, so its signature speaks for the whole adapter.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
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
from jobs.store.manifest import LARGEST_MANIFEST, SIGNATURE, Manifest, manifest_key
from jobs.store.objects import ObjectStore
from jobs.store.strict_json import load_strictly

LARGEST = 4096
MAKE = "openssl genpkey -algorithm ed25519 -out key.pem"


def signer(path: Path) -> Callable[[bytes], bytes]:
    """What signs with the private key in a PEM file. Raises InputError, which never quotes it."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as wrong:
        raise _no_key("SLORA_SIGNING_KEY", path, "no readable private key", MAKE) from wrong
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key("SLORA_SIGNING_KEY", path, "no ed25519 key", MAKE)
    return lambda data: _signature(key, data)


def signature_fault(store: ObjectStore, manifest: Manifest, path: Path) -> Fault | None:
    """What is wrong with an adapter's signature under the public key in a PEM file."""
    key = _public(path)
    where = manifest.prefix + SIGNATURE
    if store.head(where) is None:
        return Fault(where, "it is not signed", "Sign it: slora adapters sign.")
    try:
        told = load_strictly(store.read(where, 0, LARGEST))
        signature = base64.b64decode(told["signature"], validate=True)
    except (ValueError, TypeError, KeyError, binascii.Error):
        return Fault(where, "no signature can be read in it", "Trust nothing of this version.")
    name = manifest_key(manifest.name, manifest.version)
    try:
        key.verify(signature, store.read(name, 0, LARGEST_MANIFEST))
    except InvalidSignature:
        problem = f"{path} did not sign this manifest"
        return Fault(where, problem, "Use the key of whom you trust, or trust nothing of it.")
    return None


def _signature(key: Ed25519PrivateKey, data: bytes) -> bytes:
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    told = {
        "format": 1,
        "algorithm": "ed25519",
        "public_key": base64.b64encode(public).decode(),
        "signature": base64.b64encode(key.sign(data)).decode(),
    }
    return json.dumps(told, indent=2).encode() + b"\n"


def _public(path: Path) -> Ed25519PublicKey:
    make = "openssl pkey -in key.pem -pubout -out key.pub.pem"
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, TypeError) as wrong:
        raise _no_key("--key", path, "no readable public key", make) from wrong
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key("--key", path, "no ed25519 key", make)
    return key


def _no_key(where: str, path: Path, problem: str, make: str) -> InputError:
    return InputError([Fault(where, f"{path} holds {problem}", f"Make one: {make}.")])
