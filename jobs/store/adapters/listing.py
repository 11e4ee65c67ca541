"""List the committed adapters of a store, and resolve names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from jobs.errors import Fault, InputError, NotInStore
from jobs.spec.schema import NAME_PATTERN
from jobs.store.adapters.manifest import (
    BAD_MANIFEST_REMEDY,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MAX_NAME_LENGTH,
    BadManifest,
    Manifest,
    get_manifest_key,
    parse_manifest,
    parse_manifest_key,
)
from jobs.store.adapters.pointer import read_pointer
from jobs.store.adapters.versions import list_versions
from jobs.store.base import ObjectStore

READER_THREADS = 16
"""Manifests read in parallel."""

_VERSION = re.compile(r"v?([1-9][0-9]{0,8})")


def scan_adapters(store: ObjectStore) -> tuple[list[Manifest], list[Fault]]:
    """Return all manifests, and a fault for each that cannot be read, from one listing."""
    keys = [
        key
        for key in store.list("adapters/")
        if key.endswith(f"/{MANIFEST}") and key.count("/") == 3
    ]
    # Threads, because each request to a bucket has a latency.
    with ThreadPoolExecutor(READER_THREADS) as pool:
        results = list(pool.map(lambda key: _read_or_fault(store, key), keys))
    manifests = [result for result in results if isinstance(result, Manifest)]
    faults = [result for result in results if isinstance(result, Fault)]
    return sorted(manifests, key=lambda manifest: (manifest.name, manifest.version)), faults


def _read_or_fault(store: ObjectStore, key: str) -> Manifest | Fault | None:
    try:
        if parse_manifest_key(key) is None:
            raise BadManifest(key, "the folder is not <name>/v<number>")
        return _read_manifest(store, key)
    except BadManifest as error:
        return Fault(key, error.problem, BAD_MANIFEST_REMEDY)
    except NotInStore:
        return None  # deleted since the listing


def resolve_adapter(store: ObjectStore, reference: str) -> Manifest:
    """Return the adapter of a name. Raise NotInStore, with the existing ones, if it is absent.

    NAME is the promoted version, or the newest where none was promoted; NAME@v2 and NAME@2 are
    that one.
    """
    name, version = split_name(reference)
    versions = list_versions(store, name)
    if not versions:
        raise NotInStore(f"The adapter {name}", _list_names(store))
    if version is None:
        pointer = read_pointer(store, name)
        version = pointer.version if pointer else versions[-1]
    if version not in versions:
        raise NotInStore(f"{name}@v{version}", [f"{name}@v{number}" for number in versions])
    return read_committed(store, name, version)


def read_committed(store: ObjectStore, name: str, version: int) -> Manifest:
    """Return the manifest of a version, or raise BadManifest."""
    return _read_manifest(store, get_manifest_key(name, version))


def find_newest(
    store: ObjectStore, name: str, versions: Sequence[int], matches: Callable[[Manifest], bool]
) -> Manifest | None:
    """Return the newest of these versions whose manifest can be read and matches, or None."""
    for version in reversed(versions):
        try:
            manifest = read_committed(store, name, version)
        except (BadManifest, NotInStore):
            continue
        if matches(manifest):
            return manifest
    return None


def _read_manifest(store: ObjectStore, key: str) -> Manifest:
    info = store.head(key)
    if info is not None and info.size > MAX_MANIFEST_BYTES:
        raise BadManifest(key, f"{info.size} bytes exceed the limit of {MAX_MANIFEST_BYTES}")
    return parse_manifest(store.get(key), key)


def split_name(reference: str) -> tuple[str, int | None]:
    """Return NAME and the version if it has one. Raise InputError for an invalid name."""
    name, separator, version = reference.partition("@")
    match = _VERSION.fullmatch(version)
    is_valid = len(name) <= MAX_NAME_LENGTH and re.fullmatch(NAME_PATTERN, name)
    if not is_valid or (separator and not match):
        problem = f"{reference[:100]!a} is not the name of an adapter"
        raise InputError([Fault("adapter", problem, "Use NAME, or NAME@v2 for one version.")])
    return name, int(match[1]) if match else None


def _list_names(store: ObjectStore) -> list[str]:
    pairs = (parse_manifest_key(key) for key in store.list("adapters/"))
    return sorted({name for name, _ in filter(None, pairs)})
