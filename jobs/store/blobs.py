"""Blobs: bytes under their own digest, written once, beside the folders that people read.

A blob is a second copy: where a file of an adapter rots, the blob still has its bytes.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from jobs.errors import AlreadyExists, DigestMismatch, NotInStore
from jobs.store.adapters.manifest import AdapterFile
from jobs.store.base import ObjectStore
from jobs.store.digest import compute_sha256

BLOBS_PREFIX = "blobs/sha256/"
REWRITE_AGE_S = 3600.0
"""A blob that a commit finds and that is older is written anew: then `gc`, which spares what is
younger than its grace time, can't take it away before the manifest points to it."""

_KEY = re.compile(r"blobs/sha256/([0-9a-f]{2})/([0-9a-f]{62})")


def get_blob_key(sha256: str) -> str:
    """Where the bytes of a digest lie."""
    return f"{BLOBS_PREFIX}{sha256[:2]}/{sha256[2:]}"


def parse_blob_key(key: str) -> str | None:
    """The digest that a key names; None for what is no blob."""
    match = _KEY.fullmatch(key)
    return match[1] + match[2] if match else None


def store_file(store: ObjectStore, file: AdapterFile, path: Path, key: str) -> None:
    """Put `path` as a blob, and from there under `key`; what lies there is read back.

    The bytes under `key` went through the blob, so the one comparison speaks for both.
    """
    blob = get_blob_key(file.sha256)
    _put_blob(store, blob, file, path)
    digest = _copy_blob(store, blob, key)
    if digest != file.sha256:
        # A rotten blob was there, or the bytes were spoilt on their way: once more, from the file.
        store.put_file(blob, path)
        digest = _copy_blob(store, blob, key)
    if digest != file.sha256:
        raise DigestMismatch(store.url(key), file.sha256, str(digest))


def digest_object(store: ObjectStore, key: str) -> str:
    """The digest of what lies under a key, or NotFound."""
    with store.open(key) as stream:
        return compute_sha256(stream)


def _put_blob(store: ObjectStore, blob: str, file: AdapterFile, path: Path) -> None:
    existing = store.head(blob)
    if existing is None:
        try:
            store.put_file(blob, path, create_only=True)
        except AlreadyExists:
            return  # another run's, which may be under way: the read-back decides
    elif existing.size != file.size or time.time() - existing.modified > REWRITE_AGE_S:
        store.put_file(blob, path)


def _copy_blob(store: ObjectStore, blob: str, key: str) -> str | None:
    try:
        store.copy(blob, key)
    except NotInStore:
        return None  # taken away meanwhile
    return digest_object(store, key)
