"""Read what is below `adapters/` in a store: manifests, pointers, and claims of attempts."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from jobs.errors import (
    Fault,
    NotInStore,
    StoreError,
    StoreRefused,
    StoreUnreachable,
    Untrusted,
)
from jobs.spec.limits import MAX_INT32, MAX_INT64
from jobs.store.adapters.commit import CLAIM, MAX_CLAIM_BYTES
from jobs.store.adapters.listing import READER_THREADS, read_committed
from jobs.store.adapters.manifest import MANIFEST, BadManifest, Manifest, parse_manifest_key
from jobs.store.adapters.pointer import BadPointer, Pointer, read_pointer
from jobs.store.base import ObjectStore

REMEDY = "Use another version, or publish the run again."

Claim = tuple[str, int]
"""The run and the attempt that claimed a version."""
SnapshotItem = Manifest | Pointer | Claim | Fault | None


@dataclass
class StoreSnapshot:
    """The adapters of a store, as they were read."""

    manifests: list[Manifest] = field(default_factory=list)
    pointers: dict[str, Pointer] = field(default_factory=dict)
    unreadable: set[tuple[str, int]] = field(default_factory=set)
    """Names and versions whose manifest exists and cannot be read."""
    unreadable_pointers: set[str] = field(default_factory=set)
    attempts: dict[str, int] = field(default_factory=dict)
    """The newest attempt of each run that claimed a version, committed or not."""
    committed_runs: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)

    def add(self, key: str, item: SnapshotItem) -> None:
        """Add what was read at a key."""
        if isinstance(item, Manifest):
            self.manifests.append(item)
            self.committed_runs.add(item.run)
            self._add_attempt(item.run, item.attempt)
        elif isinstance(item, Pointer):
            self.pointers[_parse_name(key)] = item
        elif isinstance(item, tuple):
            self._add_attempt(*item)
        elif isinstance(item, Fault):
            self.faults.append(item)
            if (version_key := parse_manifest_key(key)) is not None:
                self.unreadable.add(version_key)
            elif key.endswith("/current"):
                self.unreadable_pointers.add(_parse_name(key))

    def _add_attempt(self, run: str, attempt: int) -> None:
        # A larger number was never counted up to.
        if attempt <= MAX_INT32:
            self.attempts[run] = max(attempt, self.attempts.get(run, 0))


def read_snapshot(
    store: ObjectStore, keys: list[str], on_progress: Callable[[int], None]
) -> StoreSnapshot:
    """Read the objects of `list_snapshot_keys`, several at once."""
    snapshot = StoreSnapshot()
    with ThreadPoolExecutor(READER_THREADS) as pool:
        for key, item in zip(
            keys, pool.map(lambda key: _read_object(store, key), keys), strict=True
        ):
            snapshot.add(key, item)
            on_progress(1)
    snapshot.manifests.sort(key=lambda manifest: (manifest.name, manifest.version))
    return snapshot


def list_snapshot_keys(store: ObjectStore) -> list[str]:
    """List the keys of manifests and pointers, and of the claims of uncommitted versions."""
    listed = {key for key in store.list("adapters/") if key.count("/") in (2, 3)}
    manifests = {key for key in listed if key.endswith(f"/{MANIFEST}") and key.count("/") == 3}
    # A manifest names its attempt. A claim without one is of an attempt that died, or is alive.
    claims = {
        key
        for key in listed
        if key.endswith(f"/{CLAIM}") and key.removesuffix(CLAIM) + MANIFEST not in manifests
    }
    pointers = {key for key in listed if key.endswith("/current") and key.count("/") == 2}
    return sorted(manifests | claims | pointers)


def _read_object(store: ObjectStore, key: str) -> SnapshotItem:
    try:
        if key.endswith("/current"):
            return _read_pointer(store, key)
        if key.endswith(f"/{CLAIM}"):
            return _read_claim(store, key)
        return _read_manifest(store, key)
    except BadManifest as error:
        return Fault(key, error.problem, REMEDY)
    except BadPointer as error:
        return Fault(key, error.problem, "Remove it, and promote again.")
    except Untrusted as error:
        return Fault(key, error.problem, error.remedy)
    except NotInStore:
        return None  # deleted since it was listed
    except (StoreRefused, StoreUnreachable):
        raise
    except StoreError as error:
        return Fault(key, str(error)[:300], REMEDY)


def _read_manifest(store: ObjectStore, key: str) -> Manifest | Fault:
    if (version_key := parse_manifest_key(key)) is None:
        return Fault(key, "its folder is not <name>/v<number>", REMEDY)
    manifest = read_committed(store, *version_key)
    if manifest.size > MAX_INT64:
        return Fault(key, f"a size of {manifest.size} bytes is impossible", REMEDY)
    return manifest


def _read_pointer(store: ObjectStore, key: str) -> Pointer | Fault | None:
    name = _parse_name(key)
    if parse_manifest_key(f"adapters/{name}/v1/{MANIFEST}") is None:
        return Fault(key, "its folder is not a valid adapter name", "Remove it.")
    return read_pointer(store, name)


def _read_claim(store: ObjectStore, key: str) -> Claim | None:
    try:
        claim = json.loads(store.read(key, 0, MAX_CLAIM_BYTES))
        run, attempt = claim["run"], claim["attempt"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # only claims that slora wrote fence an attempt
    return (run, attempt) if isinstance(run, str) and isinstance(attempt, int) else None


def _parse_name(key: str) -> str:
    return key.split("/")[1]
