"""Sign and verify manifests: ed25519 over their bytes in the store.

A manifest holds the digest of every file, so its signature covers the complete adapter.
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
from jobs.store.adapters.manifest import MAX_MANIFEST_BYTES, SIGNATURE, Manifest, get_manifest_key
from jobs.store.base import ObjectStore
from jobs.store.strict_json import load_strictly

MAX_SIGNATURE_BYTES = 4096
MAKE_PRIVATE_KEY = "openssl genpkey -algorithm ed25519 -out key.pem"


def load_signer(path: Path) -> Callable[[bytes], bytes]:
    """Return a function that signs with the private key in a PEM file. Raise InputError."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise _make_key_error(
            "SLORA_SIGNING_KEY", path, "no readable private key", MAKE_PRIVATE_KEY
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _make_key_error(
            "SLORA_SIGNING_KEY", path, "a key that is not ed25519", MAKE_PRIVATE_KEY
        )
    return lambda data: _format_signature(key, data)


def check_signature(store: ObjectStore, manifest: Manifest, path: Path) -> Fault | None:
    """Return the fault of a signature under the public key in a PEM file, or None."""
    public_key = _load_public_key(path)
    signature_key = manifest.prefix + SIGNATURE
    if store.head(signature_key) is None:
        remedy = "Sign the adapter with `slora adapters sign`."
        return Fault(signature_key, "the adapter is not signed", remedy)
    try:
        document = load_strictly(store.read(signature_key, 0, MAX_SIGNATURE_BYTES))
        signature = base64.b64decode(document["signature"], validate=True)
    except (ValueError, TypeError, KeyError, binascii.Error):
        return Fault(signature_key, "the signature cannot be read", "Do not trust this version.")
    manifest_name = get_manifest_key(manifest.name, manifest.version)
    try:
        public_key.verify(signature, store.read(manifest_name, 0, MAX_MANIFEST_BYTES))
    except InvalidSignature:
        problem = f"{path} did not sign this manifest"
        remedy = "Use the key of a signer that you trust, or do not trust this version."
        return Fault(signature_key, problem, remedy)
    return None


def _format_signature(key: Ed25519PrivateKey, data: bytes) -> bytes:
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    document = {
        "format": 1,
        "algorithm": "ed25519",
        "public_key": base64.b64encode(public).decode(),
        "signature": base64.b64encode(key.sign(data)).decode(),
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def _load_public_key(path: Path) -> Ed25519PublicKey:
    command = "openssl pkey -in key.pem -pubout -out key.pub.pem"
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise _make_key_error("--key", path, "no readable public key", command) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _make_key_error("--key", path, "a key that is not ed25519", command)
    return key


def _make_key_error(setting: str, path: Path, problem: str, command: str) -> InputError:
    return InputError([Fault(setting, f"{path} contains {problem}", f"Create one: {command}.")])
