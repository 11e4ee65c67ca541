"""Blobs: bytes under their own digest, written once, beside the folders that people read.

A blob is a second copy: where a file of an adapter rots, the blob still has its bytes.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from jobs.errors import AlreadyThere, DigestMismatch, NotFound
from jobs.store.digest import sha256_of
from jobs.store.manifest import File
from jobs.store.objects import ObjectStore

BLOBS = "blobs/sha256/"
FRESH_S = 3600.0
"""A blob that a commit finds and that is older is written anew: then `gc`, which spares what is
younger than its grace time, can't take it away before the manifest points to it."""

_KEY = re.compile(r"blobs/sha256/([0-9a-f]{2})/([0-9a-f]{62})")


def blob_key(sha256: str) -> str:
    """Where the bytes of a digest lie."""
    return f"{BLOBS}{sha256[:2]}/{sha256[2:]}"


def digest_of_key(key: str) -> str | None:
    """The digest that a key names; None for what is no blob."""
    found = _KEY.fullmatch(key)
    return found[1] + found[2] if found else None


def store_file(store: ObjectStore, file: File, path: Path, key: str) -> None:
    """Put `path` as a blob, and from there under `key`; what lies there is read back.

    The bytes under `key` went through the blob, so the one comparison speaks for both.
    """
    blob = blob_key(file.sha256)
    _put(store, blob, file, path)
    found = _copied(store, blob, key)
    if found != file.sha256:
        # A rotten blob was there, or the bytes were spoilt on their way: once more, from the file.
        store.put_file(blob, path)
        found = _copied(store, blob, key)
    if found != file.sha256:
        raise DigestMismatch(store.url(key), file.sha256, str(found))


def digest_in(store: ObjectStore, key: str) -> str:
    """The digest of what lies under a key, or NotFound."""
    with store.open(key) as stream:
        return sha256_of(stream)


def _put(store: ObjectStore, blob: str, file: File, path: Path) -> None:
    there = store.head(blob)
    if there is None:
        try:
            store.put_file(blob, path, create_only=True)
        except AlreadyThere:
            return  # another run's, which may be under way: the read-back decides
    elif there.size != file.size or time.time() - there.modified > FRESH_S:
        store.put_file(blob, path)


def _copied(store: ObjectStore, blob: str, key: str) -> str | None:
    try:
        store.copy(blob, key)
    except NotFound:
        return None  # taken away meanwhile
    return digest_in(store, key)
