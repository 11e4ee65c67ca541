"""Taking away: one version that nothing points to, and blobs that no manifest names any more."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from jobs.errors import AlreadyThere, NotFound, StillNeeded, StoreError
from jobs.store.blobs import BLOBS, FRESH_S, digest_of_key
from jobs.store.commit import CLAIM
from jobs.store.keys import Leftover
from jobs.store.listing import survey
from jobs.store.manifest import manifest_key, version_prefix
from jobs.store.objects import ObjectStore
from jobs.store.pointer import TOMBSTONE, current_key, read_pointer

GRACE_S = 24 * 3600.0
LEAST_GRACE_S = 2 * FRESH_S
"""Below it a commit under way could lose a blob that it has found and not yet named."""


@dataclass(frozen=True)
class Swept:
    """What a `gc` removed, or would remove."""

    keys: tuple[str, ...]
    bytes: int
    kept: int
    """Blobs that stay: named by a manifest, or younger than the grace time."""
    leftovers: tuple[str, ...] = ()
    """Temporary files and unfinished uploads of writers that died; in `bytes` too."""


def delete(store: ObjectStore, name: str, version: int) -> None:
    """Remove a version: its manifest first, so no reader ever meets half of it.

    Raises StillNeeded where `current` or a child points to it. Its number stays taken. Asked again
    after a death, it goes on.
    """
    prefix = version_prefix(name, version)
    if store.head(manifest_key(name, version)) is None and store.head(prefix + TOMBSTONE) is None:
        raise NotFound(f"{name}@v{version}")
    try:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        store.put(prefix + TOMBSTONE, when.encode(), create_only=True)
    except AlreadyThere:
        pass  # an earlier try, which we finish
    # Only now: a promotion moves the pointer first and looks for our mark then.
    if needed := _needed_by(store, name, version):
        store.delete(prefix + TOMBSTONE)
        raise StillNeeded(f"{name}@v{version}", needed)
    store.delete(manifest_key(name, version))
    for key in store.list(prefix):
        if key not in (prefix + CLAIM, prefix + TOMBSTONE):
            store.delete(key)


def gc(
    store: ObjectStore, *, grace: float = GRACE_S, dry_run: bool = False, now: float | None = None
) -> Swept:
    """Remove blobs that no manifest names, and what dead writers left, once `grace` seconds old.

    Nothing else. Blobs are listed before manifests are read: what is committed in between is named.
    """
    if grace < LEAST_GRACE_S:
        least = f"{LEAST_GRACE_S / 3600:g}"
        raise StoreError(f"a grace time below {least} hours could meet a commit: use {least}.")
    blobs = [key for key in store.list(BLOBS) if digest_of_key(key)]
    manifests, broken = survey(store)
    if broken:
        raise StoreError(
            f"{broken[0].key} can't be read ({broken[0].problem}), so nobody knows which blobs it "
            "names. Nothing was removed: mend or delete it first."
        )
    named = {file.sha256 for manifest in manifests for file in manifest.files}
    loose = [key for key in blobs if digest_of_key(key) not in named]
    removed = [found for key in loose if (found := _swept(store, key, grace, dry_run, now))]
    left = _swept_leftovers(store, grace, dry_run, now)
    size = sum(found[1] for found in removed) + sum(one.size for one in left)
    keys, names = (tuple(found[0] for found in removed), tuple(one.name for one in left))
    return Swept(keys, size, len(blobs) - len(removed), names)


def _swept_leftovers(
    store: ObjectStore, grace: float, dry_run: bool, now: float | None
) -> list[Leftover]:
    moment = now or time.time()
    old = [one for one in store.leftovers() if moment - one.modified >= grace]
    if not dry_run:
        for one in old:
            store.discard(one)
    return old


def _swept(
    store: ObjectStore, key: str, grace: float, dry_run: bool, now: float | None
) -> tuple[str, int] | None:
    # Looked at just before it goes: a commit may have written it anew since it was listed.
    there = store.head(key)
    if there is None or (now or time.time()) - there.modified < grace:
        return None
    if not dry_run:
        store.delete(key)
    return key, there.size


def _needed_by(store: ObjectStore, name: str, version: int) -> list[str]:
    pointer = read_pointer(store, name)
    needed = [current_key(name)] if pointer and pointer.version == version else []
    label = f"{name}@v{version}"
    children = (m.label for m in survey(store)[0] if m.parent == label)
    return needed + [f"{child} (its parent)" for child in children]
