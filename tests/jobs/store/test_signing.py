"""Signatures: by the right key over the exact manifest, or a fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from jobs.errors import InputError
from jobs.store.adapters.operations import commit, pull, verify_adapter
from jobs.store.local import DirectoryStore
from jobs.store.trust.signatures import load_signer
from tests.jobs.store.builders import make_adapter_folder, make_draft

SIGNATURE = "adapters/chat/v1/manifest.sig"


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return key_pair(tmp_path, "ours")


@pytest.fixture
def signed(store: DirectoryStore, keys, tmp_path: Path):
    return commit(
        store, make_adapter_folder(tmp_path / "exported"), make_draft(), sign=load_signer(keys[0])
    )


def test_a_signed_adapter_verifies_and_its_signature_is_pulled(store, keys, signed, tmp_path):
    assert verify_adapter(store, signed, key=keys[1]) == []
    assert verify_adapter(store, signed) == []
    assert (pull(store, signed, tmp_path / "pulled") / "manifest.sig").is_file()


def test_another_key_did_not_sign_it(store, signed, tmp_path: Path):
    _, other = key_pair(tmp_path, "other")
    [fault] = verify_adapter(store, signed, key=other)
    assert "did not sign" in fault.problem


def test_a_manifest_that_was_changed_is_not_the_signed_one(store, keys, signed):
    key = "adapters/chat/v1/manifest.json"
    store.put(key, store.get(key).replace(b'"world_size": 2', b'"world_size": 3'))
    [fault] = verify_adapter(store, signed, key=keys[1])
    assert fault.key == SIGNATURE


@pytest.mark.parametrize(
    "document",
    [b"", b"null", b"{}", b'{"signature": 1}', b'{"signature": "%"}', b"\xff", b"[" * 4000],
)
def test_an_invalid_signature_is_a_fault(document: bytes, store, keys, signed):
    store.put(SIGNATURE, document)
    [fault] = verify_adapter(store, signed, key=keys[1])
    assert fault.key == SIGNATURE


def test_a_signature_of_no_bytes_is_wrong(store, keys, signed):
    store.put(SIGNATURE, json.dumps({"signature": ""}).encode())
    assert len(verify_adapter(store, signed, key=keys[1])) == 1


def test_an_unsigned_adapter_is_a_fault_where_a_signature_is_required(store, keys, tmp_path):
    manifest = commit(store, make_adapter_folder(tmp_path / "exported"), make_draft())
    [fault] = verify_adapter(store, manifest, key=keys[1])
    assert "not signed" in fault.problem


def test_an_invalid_key_is_reported_without_its_content(tmp_path: Path, store, signed):
    other = generate_private_key(SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    for number, content in enumerate((b"s3cr3t", other, b"")):
        path = tmp_path / f"key-{number}"
        path.write_bytes(content)
        for act in (
            lambda at=path: load_signer(at),
            lambda at=path: verify_adapter(store, signed, key=at),
        ):
            with pytest.raises(InputError) as caught:
                act()
            assert "s3cr3t" not in str(caught.value) and "BEGIN" not in str(caught.value)
