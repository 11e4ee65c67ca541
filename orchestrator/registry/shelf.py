"""What lies under `adapters/` in a store: manifests, what names mean, and which attempts came."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from jobs.errors import Fault, NotFound, StoreError, StoreRefused, StoreUnreachable
from jobs.store.commit import CLAIM, LARGEST_CLAIM
from jobs.store.listing import READERS, read_committed
from jobs.store.manifest import MANIFEST, BadManifest, Manifest, read_manifest_key
from jobs.store.objects import ObjectStore
from jobs.store.pointer import BadPointer, Pointer, current_key, read_pointer

LARGEST_ATTEMPT = 2**31 - 1
"""A number above it was never counted up to."""
LARGEST_SIZE = 2**63 - 1
REMEDY = "Ask for another version, or publish the run again."


@dataclass(frozen=True)
class Shelf:
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
    def done(self) -> frozenset[str]:
        """The runs that have committed."""
        return frozenset(manifest.run for manifest in self.manifests)


def read_shelf(store: ObjectStore, keys: list[str], seen: Callable[[int], None]) -> Shelf:
    """Reads all of it, several objects at once; `seen` is told of each key."""
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(lambda key: _read(store, key, seen), keys))
    by_key = dict(zip(keys, found, strict=True))
    manifests = [one for one in found if isinstance(one, Manifest)]
    bad = {key: one for key, one in by_key.items() if isinstance(one, Fault)}
    attempts: dict[str, int] = {}
    claims = [one for one in found if isinstance(one, tuple)]
    for run, attempt in [*claims, *((one.run, one.attempt) for one in manifests)]:
        if attempt <= LARGEST_ATTEMPT:
            attempts[run] = max(attempt, attempts.get(run, 0))
    return Shelf(
        manifests=tuple(sorted(manifests, key=lambda one: (one.name, one.version))),
        pointers={_name(key): one for key, one in by_key.items() if isinstance(one, Pointer)},
        unreadable=frozenset(filter(None, map(read_manifest_key, bad))),
        unknown_pointers=frozenset(_name(key) for key in bad if key.endswith("/current")),
        attempts=attempts,
        faults=tuple(bad.values()),
    )


def shelf_keys(store: ObjectStore) -> list[str]:
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


Read = Manifest | Pointer | tuple[str, int] | Fault | None


def _read(store: ObjectStore, key: str, seen: Callable[[int], None]) -> Read:
    try:
        if key.endswith("/current"):
            return _pointer(store, key)
        if key.endswith(f"/{CLAIM}"):
            return _claim(store, key)
        if (place := read_manifest_key(key)) is None:
            return Fault(key, "its folder is not <name>/v<number>", REMEDY)
        manifest = read_committed(store, *place)
        if manifest.size > LARGEST_SIZE:
            return Fault(key, f"{manifest.size} bytes are more than there are", REMEDY)
        return manifest
    except BadManifest as error:
        return Fault(key, error.problem, REMEDY)
    except BadPointer as error:
        return Fault(key, error.problem, "Remove it, and promote again.")
    except NotFound:
        return None  # removed since it was listed
    except (StoreRefused, StoreUnreachable):
        raise
    except StoreError as error:
        return Fault(key, str(error)[:300], REMEDY)
    finally:
        seen(1)


def _pointer(store: ObjectStore, key: str) -> Pointer | Fault | None:
    # Under a folder that is no adapter's name nobody could ask for it.
    if read_manifest_key(f"adapters/{_name(key)}/v1/{MANIFEST}") is None:
        return Fault(key, "its folder is no adapter's name", "Remove it.")
    assert key == current_key(_name(key))
    return read_pointer(store, _name(key))


def _claim(store: ObjectStore, key: str) -> tuple[str, int] | None:
    try:
        claim = json.loads(store.read(key, 0, LARGEST_CLAIM))
        run, attempt = claim["run"], claim["attempt"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # what we did not write fences nobody
    return (run, attempt) if isinstance(run, str) and isinstance(attempt, int) else None


def _name(key: str) -> str:
    return key.split("/")[1]
