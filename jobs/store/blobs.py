"""Store the files of adapters as blobs: bytes under their own digest, written once.

A blob is a second copy: if a file in the folder of an adapter is corrupt, its blob replaces it.
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
"""A commit rewrites an existing blob that is older. `gc` spares blobs younger than its grace time,
so it cannot delete this one before the manifest refers to it."""

_KEY = re.compile(r"blobs/sha256/([0-9a-f]{2})/([0-9a-f]{62})")


def get_blob_key(sha256: str) -> str:
    """Return the key of the blob with a digest."""
    return f"{BLOBS_PREFIX}{sha256[:2]}/{sha256[2:]}"


def parse_blob_key(key: str) -> str | None:
    """Return the digest in the key of a blob, or None for another key."""
    match = _KEY.fullmatch(key)
    return match[1] + match[2] if match else None


def store_file(store: ObjectStore, file: AdapterFile, path: Path, key: str) -> None:
    """Write `path` as a blob, copy the blob to `key`, and read that back.

    The bytes under `key` are a copy of the blob, so one comparison verifies both.
    """
    blob = get_blob_key(file.sha256)
    _put_blob(store, blob, file, path)
    digest = _copy_blob(store, blob, key)
    if digest != file.sha256:
        # The existing blob was corrupt, or the transfer was: send the file once more.
        store.put_file(blob, path)
        digest = _copy_blob(store, blob, key)
    if digest != file.sha256:
        raise DigestMismatch(store.url(key), file.sha256, str(digest))


def digest_object(store: ObjectStore, key: str) -> str:
    """Return the digest of an object. Raise NotInStore if it is absent."""
    with store.open(key) as stream:
        return compute_sha256(stream)


def _put_blob(store: ObjectStore, blob: str, file: AdapterFile, path: Path) -> None:
    existing = store.head(blob)
    if existing is None:
        try:
            store.put_file(blob, path, create_only=True)
        except AlreadyExists:
            return  # another run wrote it, perhaps not completely: reading it back decides
    elif existing.size != file.size or time.time() - existing.modified > REWRITE_AGE_S:
        store.put_file(blob, path)


def _copy_blob(store: ObjectStore, blob: str, key: str) -> str | None:
    try:
        store.copy(blob, key)
    except NotInStore:
        return None  # deleted meanwhile
    return digest_object(store, key)
