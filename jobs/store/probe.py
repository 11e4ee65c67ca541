"""Test whether a store keeps the guarantees that the commit protocol needs."""

from __future__ import annotations

import secrets
from contextlib import suppress

from jobs.errors import AlreadyExists, NotInStore, StoreRefused, WriteConflict
from jobs.store.base import ObjectStore


def find_missing_guarantee(store: ObjectStore, key: str) -> str | None:
    """Return the first guarantee that the store breaks, in words, or None. Clean up afterwards.

    A writer without the permission to delete passes: the small object under `key` then stays.
    """
    try:
        return _try_guarantees(store, key)
    finally:
        with suppress(StoreRefused):
            store.delete(key)


def _try_guarantees(store: ObjectStore, key: str) -> str | None:
    first, second = secrets.token_bytes(32), secrets.token_bytes(32)
    etag = store.put(key, first, create_only=True)
    if not _is_write_refused(store, key, second, create_only=True):
        return "the store ignores If-None-Match: it accepted a second create-only write of a key"
    if not _is_write_refused(store, key, second, if_match=f"{'0' * 31}1"):
        return "the store ignores If-Match: it accepted a write with the etag of other bytes"
    try:
        if store.get(key) != first:
            return "the store does not return the bytes of the last write"
        store.put(key, second, if_match=etag)
        if store.read(key, 1, 5) != second[1:6] or store.get(key) != second:
            return "the store does not return the bytes of the last write"
    except (WriteConflict, NotInStore):
        return "the store loses an object that was just written"
    return None if key in store.list(key) else "the store does not list a key just written"


def _is_write_refused(
    store: ObjectStore, key: str, data: bytes, *, create_only: bool = False,
    if_match: str | None = None,
) -> bool:  # fmt: skip
    try:
        store.put(key, data, create_only=create_only, if_match=if_match)
    except (AlreadyExists, WriteConflict):
        return True
    return False
