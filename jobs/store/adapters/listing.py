"""List the committed adapters of a store, and resolve names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from jobs.errors import Fault, InputError, NotInStore, Untrusted
from jobs.spec.limits import NAME_PATTERN
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
from jobs.store.trust.trust_policy import demand_signature

READER_THREADS = 16
"""Manifests read in parallel."""

_VERSION = re.compile(r"v?([1-9][0-9]{0,8})")


def scan_adapters(
    store: ObjectStore, *, trusts_all: bool = False
) -> tuple[list[Manifest], list[Fault]]:
    """Return all manifests, and a fault for each that cannot be read, from one listing.

    A manifest that the trust policy refuses is a fault too, unless `trusts_all`.
    """
    keys = [
        key
        for key in store.list("adapters/")
        if key.endswith(f"/{MANIFEST}") and key.count("/") == 3
    ]
    # Threads, because each request to a bucket has a latency.
    with ThreadPoolExecutor(READER_THREADS) as pool:
        results = list(pool.map(lambda key: _read_or_fault(store, key, trusts_all), keys))
    manifests = [result for result in results if isinstance(result, Manifest)]
    faults = [result for result in results if isinstance(result, Fault)]
    return sorted(manifests, key=lambda manifest: (manifest.name, manifest.version)), faults


def _read_or_fault(store: ObjectStore, key: str, trusts_all: bool) -> Manifest | Fault | None:
    try:
        if parse_manifest_key(key) is None:
            raise BadManifest(key, "the folder is not <name>/v<number>")
        return _read_manifest(store, key, trusts_all)
    except BadManifest as error:
        return Fault(key, error.problem, BAD_MANIFEST_REMEDY)
    except Untrusted as error:
        return Fault(key, error.problem, error.remedy)
    except NotInStore:
        return None  # deleted since the listing


def resolve_adapter(store: ObjectStore, reference: str, *, own_run: str | None = None) -> Manifest:
    """Return the adapter of a name. Raise NotInStore, with the existing ones, if it is absent.

    NAME is the promoted version, or the newest where none was promoted; NAME@v2 and NAME@2 are
    that one. Raise Untrusted if the trust policy refuses it; a run reads what it has committed
    itself, before its service signs that, as its `own_run`.
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
    return read_committed(store, name, version, own_run=own_run)


def read_committed(
    store: ObjectStore, name: str, version: int, *, own_run: str | None = None
) -> Manifest:
    """Return the manifest of a version. Raise BadManifest, and Untrusted as `resolve_adapter`."""
    key = get_manifest_key(name, version)
    if own_run is not None:
        manifest = _read_manifest(store, key, trusts_all=True)
        if own_run in (manifest.run, manifest.search):
            return manifest
    return _read_manifest(store, key)


def find_newest(
    store: ObjectStore,
    name: str,
    versions: Sequence[int],
    matches: Callable[[Manifest], bool],
    *,
    trusts_all: bool = False,
) -> Manifest | None:
    """Return the newest of these versions whose manifest can be read and matches, or None.

    A version that the trust policy refuses is passed over, unless `trusts_all`: a run finds what it
    has committed itself that way, before its service signs it.
    """
    for version in reversed(versions):
        try:
            manifest = _read_manifest(store, get_manifest_key(name, version), trusts_all)
        except (BadManifest, NotInStore, Untrusted):
            continue
        if matches(manifest):
            return manifest
    return None


def _read_manifest(store: ObjectStore, key: str, trusts_all: bool = False) -> Manifest:
    info = store.head(key)
    if info is not None and info.size > MAX_MANIFEST_BYTES:
        raise BadManifest(key, f"{info.size} bytes exceed the limit of {MAX_MANIFEST_BYTES}")
    data = store.get(key)
    manifest = parse_manifest(data, key)
    if not trusts_all:
        demand_signature(store, manifest, data)
    return manifest


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
