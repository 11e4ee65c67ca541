"""Delete a version that nothing refers to, and the blobs that no manifest refers to."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from jobs.errors import AlreadyExists, NotInStore, StillReferenced, StoreError
from jobs.store.adapters.commit import CLAIM
from jobs.store.adapters.listing import scan_adapters
from jobs.store.adapters.manifest import get_manifest_key, get_version_prefix
from jobs.store.adapters.pointer import TOMBSTONE, get_pointer_key, load_pointer
from jobs.store.base import Leftover, ObjectStore
from jobs.store.blobs import BLOBS_PREFIX, REWRITE_AGE_S, parse_blob_key
from jobs.store.keys import DEPLOYMENTS_PREFIX, MAX_DEPLOYMENT_BYTES

GRACE_S = 24 * 3600.0
MIN_GRACE_S = 2 * REWRITE_AGE_S
"""With less, a running commit could lose a blob that it found and does not refer to yet."""


@dataclass(frozen=True)
class GarbageReport:
    """The objects that `gc` deleted, or would delete."""

    keys: tuple[str, ...]
    bytes: int
    retained: int
    """The number of remaining blobs: referenced by a manifest, or within the grace period."""
    leftovers: tuple[str, ...] = ()
    """Temporary files and unfinished uploads of dead writers; `bytes` includes them."""


def delete_version(store: ObjectStore, name: str, version: int) -> None:
    """Delete a version: its manifest first, so that no reader meets half of it.

    Raise StillReferenced if `current`, a child or a deployment refers to it. Its number is not used
    again. After a crash, repeat the call to finish.
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
        pass  # an earlier attempt, which this one finishes
    # Only now: a promotion moves the pointer first and looks for the tombstone afterwards.
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
    """Delete unreferenced blobs and debris of dead writers that are older than `grace` seconds.

    Blobs are listed before manifests are read, so a commit in between is seen.
    """
    if grace < MIN_GRACE_S:
        minimum = f"{MIN_GRACE_S / 3600:g}"
        raise StoreError(
            f"a grace period below {minimum} hours could break a running commit. "
            f"Use {minimum} hours or more."
        )
    blobs = [key for key in store.list(BLOBS_PREFIX) if parse_blob_key(key)]
    manifests, broken = scan_adapters(store, trusts_all=True)
    if broken:
        raise StoreError(
            f"{broken[0].key} cannot be read ({broken[0].problem}), so the blobs that it refers to "
            "are unknown. Nothing was deleted. Fix or delete the manifest first."
        )
    referenced = {file.sha256 for manifest in manifests for file in manifest.files}
    unreferenced = [key for key in blobs if parse_blob_key(key) not in referenced]
    removed = [
        blob for key in unreferenced if (blob := _sweep_blob(store, key, grace, dry_run, now))
    ]
    leftovers = _sweep_leftovers(store, grace, dry_run, now)
    size = sum(blob[1] for blob in removed) + sum(leftover.size for leftover in leftovers)
    keys = tuple(key for key, _ in removed)
    names = tuple(leftover.name for leftover in leftovers)
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
    # Checked just before the deletion: a commit may have rewritten it since the listing.
    info = store.head(key)
    if info is None or (now or time.time()) - info.modified < grace:
        return None
    if not dry_run:
        store.delete(key)
    return key, info.size


def _list_references(store: ObjectStore, name: str, version: int) -> list[str]:
    pointer = load_pointer(store, name)
    references = [get_pointer_key(name)] if pointer and pointer.version == version else []
    label = f"{name}@v{version}"
    children = (
        manifest.label
        for manifest in scan_adapters(store, trusts_all=True)[0]
        if manifest.parent == label
    )
    references += [f"{child} (its parent)" for child in children]
    return references + [
        key for key in store.list(DEPLOYMENTS_PREFIX) if _serves(store, key, label)
    ]


def _serves(store: ObjectStore, key: str, label: str) -> bool:
    """Return whether a deployment answers with this version, keeps it loaded, or stays at it."""
    try:
        record = json.loads(store.read(key, 0, MAX_DEPLOYMENT_BYTES))
        versions = [record.get(field) for field in ("live", "previous", "pin")]
        versions.append((record.get("rollout") or {}).get("version"))
        return label in {f"{record.get('adapter')}@v{version}" for version in versions}
    except (NotInStore, ValueError, AttributeError, RecursionError):
        return False  # removed since the listing, or no deployment
