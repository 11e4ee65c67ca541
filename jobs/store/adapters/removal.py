"""Taking away: one version that nothing points to, and blobs that no manifest names any more."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from jobs.errors import AlreadyExists, NotInStore, StillReferenced, StoreError
from jobs.store.adapters.commit import CLAIM
from jobs.store.adapters.listing import scan_adapters
from jobs.store.adapters.manifest import get_manifest_key, get_version_prefix
from jobs.store.adapters.pointer import TOMBSTONE, get_pointer_key, read_pointer
from jobs.store.base import ObjectStore
from jobs.store.blobs import BLOBS_PREFIX, REWRITE_AGE_S, parse_blob_key
from jobs.store.keys import Leftover

GRACE_S = 24 * 3600.0
MIN_GRACE_S = 2 * REWRITE_AGE_S
"""Below it a commit under way could lose a blob that it has found and not yet named."""


@dataclass(frozen=True)
class GarbageReport:
    """What a `gc` removed, or would remove."""

    keys: tuple[str, ...]
    bytes: int
    retained: int
    """Blobs that stay: named by a manifest, or younger than the grace time."""
    leftovers: tuple[str, ...] = ()
    """Temporary files and unfinished uploads of writers that died; in `bytes` too."""


def delete_version(store: ObjectStore, name: str, version: int) -> None:
    """Remove a version: its manifest first, so no reader ever meets half of it.

    Raises StillNeeded where `current` or a child points to it. Its number stays taken. Asked again
    after a death, it goes on.
    """
    prefix = get_version_prefix(name, version)
    if (
        store.head(get_manifest_key(name, version)) is None
        and store.head(prefix + TOMBSTONE) is None
    ):
        raise NotInStore(f"{name}@v{version}")
    try:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        store.put(prefix + TOMBSTONE, when.encode(), create_only=True)
    except AlreadyExists:
        pass  # an earlier try, which we finish
    # Only now: a promotion moves the pointer first and looks for our mark then.
    if references := _list_references(store, name, version):
        store.delete(prefix + TOMBSTONE)
        raise StillReferenced(f"{name}@v{version}", references)
    store.delete(get_manifest_key(name, version))
    for key in store.list(prefix):
        if key not in (prefix + CLAIM, prefix + TOMBSTONE):
            store.delete(key)


def collect_garbage(
    store: ObjectStore, *, grace: float = GRACE_S, dry_run: bool = False, now: float | None = None
) -> GarbageReport:
    """Remove blobs that no manifest names, and what dead writers left, once `grace` seconds old.

    Nothing else. Blobs are listed before manifests are read: what is committed in between is named.
    """
    if grace < MIN_GRACE_S:
        minimum = f"{MIN_GRACE_S / 3600:g}"
        raise StoreError(f"a grace time below {minimum} hours could meet a commit: use {minimum}.")
    blobs = [key for key in store.list(BLOBS_PREFIX) if parse_blob_key(key)]
    manifests, broken = scan_adapters(store)
    if broken:
        raise StoreError(
            f"{broken[0].key} can't be read ({broken[0].problem}), so nobody knows which blobs it "
            "names. Nothing was removed: mend or delete it first."
        )
    referenced = {file.sha256 for manifest in manifests for file in manifest.files}
    unreferenced = [key for key in blobs if parse_blob_key(key) not in referenced]
    removed = [
        blob for key in unreferenced if (blob := _sweep_blob(store, key, grace, dry_run, now))
    ]
    leftovers = _sweep_leftovers(store, grace, dry_run, now)
    size = sum(blob[1] for blob in removed) + sum(leftover.size for leftover in leftovers)
    keys, names = (
        tuple(blob[0] for blob in removed),
        tuple(leftover.name for leftover in leftovers),
    )
    return GarbageReport(keys, size, len(blobs) - len(removed), names)


def _sweep_leftovers(
    store: ObjectStore, grace: float, dry_run: bool, now: float | None
) -> list[Leftover]:
    moment = now or time.time()
    expired = [
        leftover for leftover in store.list_leftovers() if moment - leftover.modified >= grace
    ]
    if not dry_run:
        for leftover in expired:
            store.discard(leftover)
    return expired


def _sweep_blob(
    store: ObjectStore, key: str, grace: float, dry_run: bool, now: float | None
) -> tuple[str, int] | None:
    # Looked at just before it goes: a commit may have written it anew since it was listed.
    info = store.head(key)
    if info is None or (now or time.time()) - info.modified < grace:
        return None
    if not dry_run:
        store.delete(key)
    return key, info.size


def _list_references(store: ObjectStore, name: str, version: int) -> list[str]:
    pointer = read_pointer(store, name)
    references = [get_pointer_key(name)] if pointer and pointer.version == version else []
    label = f"{name}@v{version}"
    children = (manifest.label for manifest in scan_adapters(store)[0] if manifest.parent == label)
    return references + [f"{child} (its parent)" for child in children]
