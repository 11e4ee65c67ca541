"""Whether a store keeps what the commit protocol needs, tried out rather than believed."""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from jobs.errors import AlreadyExists, NotInStore, StoreRefused, WriteConflict

if TYPE_CHECKING:
    from jobs.store.base import ObjectStore


def find_missing_guarantee(store: ObjectStore, key: str) -> str | None:
    """What the store does not keep, in words; None when it is sound. Removes what it wrote.

    A writer that may not delete is fine: the small object then stays.
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
        return "it ignores If-None-Match: a second create-only write of one key was taken"
    if not _is_write_refused(store, key, second, if_match=f"{'0' * 31}1"):
        return "it ignores If-Match: a write that was to replace other bytes was taken"
    try:
        if store.get(key) != first:
            return "it does not give back what was written last"
        store.put(key, second, if_match=etag)
        if store.read(key, 1, 5) != second[1:6] or store.get(key) != second:
            return "it does not give back what was written last"
    except (WriteConflict, NotInStore):
        return "it forgets what was written a moment ago"
    return None if key in store.list(key) else "it does not list what was written a moment ago"


def _is_write_refused(
    store: ObjectStore, key: str, data: bytes, *, create_only: bool = False,
    if_match: str | None = None,
) -> bool:  # fmt: skip
    try:
        store.put(key, data, create_only=create_only, if_match=if_match)
    except (AlreadyExists, WriteConflict):
        return True
    return False
