"""What lies under `adapters/` in a store: manifests, what names mean, and which attempts came."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from jobs.errors import Fault, NotInStore, StoreError, StoreRefused, StoreUnreachable
from jobs.store.adapters.commit import CLAIM, MAX_CLAIM_BYTES
from jobs.store.adapters.listing import READER_THREADS, read_committed
from jobs.store.adapters.manifest import MANIFEST, BadManifest, Manifest, parse_manifest_key
from jobs.store.adapters.pointer import BadPointer, Pointer, get_pointer_key, read_pointer
from jobs.store.base import ObjectStore

MAX_ATTEMPT = 2**31 - 1
"""A number above it was never counted up to."""
MAX_SIZE = 2**63 - 1
REMEDY = "Ask for another version, or publish the run again."


@dataclass(frozen=True)
class StoreSnapshot:
    """One look at a store's adapters."""

    manifests: tuple[Manifest, ...]
    """By name and version."""
    pointers: dict[str, Pointer]
    unreadable: frozenset[tuple[str, int]]
    """Versions that are there and can't be read."""
    unknown_pointers: frozenset[str]
    attempts: dict[str, int]
    """For each run the newest attempt that ever claimed a version, committed or not."""
    faults: tuple[Fault, ...]

    @property
    def committed_runs(self) -> frozenset[str]:
        """The runs that have committed."""
        return frozenset(manifest.run for manifest in self.manifests)


def read_snapshot(
    store: ObjectStore, keys: list[str], on_progress: Callable[[int], None]
) -> StoreSnapshot:
    """Reads all of it, several objects at once; `seen` is told of each key."""
    with ThreadPoolExecutor(READER_THREADS) as pool:
        items = list(pool.map(lambda key: _read_object(store, key, on_progress), keys))
    by_key = dict(zip(keys, items, strict=True))
    manifests = [item for item in items if isinstance(item, Manifest)]
    faults = {key: item for key, item in by_key.items() if isinstance(item, Fault)}
    attempts: dict[str, int] = {}
    claims = [item for item in items if isinstance(item, tuple)]
    for run, attempt in [*claims, *((item.run, item.attempt) for item in manifests)]:
        if attempt <= MAX_ATTEMPT:
            attempts[run] = max(attempt, attempts.get(run, 0))
    return StoreSnapshot(
        manifests=tuple(sorted(manifests, key=lambda item: (item.name, item.version))),
        pointers={
            _parse_name(key): item for key, item in by_key.items() if isinstance(item, Pointer)
        },
        unreadable=frozenset(filter(None, map(parse_manifest_key, faults))),
        unknown_pointers=frozenset(_parse_name(key) for key in faults if key.endswith("/current")),
        attempts=attempts,
        faults=tuple(faults.values()),
    )


def list_snapshot_keys(store: ObjectStore) -> list[str]:
    """The keys that `read_shelf` reads, from one list."""
    listed = {key for key in store.list("adapters/") if key.count("/") in (2, 3)}
    manifests = {key for key in listed if key.endswith(f"/{MANIFEST}") and key.count("/") == 3}
    # A manifest names its attempt; a claim alone is of one that died, or is under way.
    claims = {
        key
        for key in listed
        if key.endswith(f"/{CLAIM}") and key.removesuffix(CLAIM) + MANIFEST not in manifests
    }
    pointers = {key for key in listed if key.endswith("/current") and key.count("/") == 2}
    return sorted(manifests | claims | pointers)


SnapshotItem = Manifest | Pointer | tuple[str, int] | Fault | None


def _read_object(store: ObjectStore, key: str, on_progress: Callable[[int], None]) -> SnapshotItem:
    try:
        if key.endswith("/current"):
            return _read_pointer(store, key)
        if key.endswith(f"/{CLAIM}"):
            return _read_claim(store, key)
        if (version_key := parse_manifest_key(key)) is None:
            return Fault(key, "its folder is not <name>/v<number>", REMEDY)
        manifest = read_committed(store, *version_key)
        if manifest.size > MAX_SIZE:
            return Fault(key, f"{manifest.size} bytes are more than there are", REMEDY)
        return manifest
    except BadManifest as error:
        return Fault(key, error.problem, REMEDY)
    except BadPointer as error:
        return Fault(key, error.problem, "Remove it, and promote again.")
    except NotInStore:
        return None  # removed since it was listed
    except (StoreRefused, StoreUnreachable):
        raise
    except StoreError as error:
        return Fault(key, str(error)[:300], REMEDY)
    finally:
        on_progress(1)


def _read_pointer(store: ObjectStore, key: str) -> Pointer | Fault | None:
    # Under a folder that is no adapter's name nobody could ask for it.
    if parse_manifest_key(f"adapters/{_parse_name(key)}/v1/{MANIFEST}") is None:
        return Fault(key, "its folder is no adapter's name", "Remove it.")
    assert key == get_pointer_key(_parse_name(key))
    return read_pointer(store, _parse_name(key))


def _read_claim(store: ObjectStore, key: str) -> tuple[str, int] | None:
    try:
        claim = json.loads(store.read(key, 0, MAX_CLAIM_BYTES))
        run, attempt = claim["run"], claim["attempt"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # what we did not write fences nobody
    return (run, attempt) if isinstance(run, str) and isinstance(attempt, int) else None


def _parse_name(key: str) -> str:
    return key.split("/")[1]
