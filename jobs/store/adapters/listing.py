"""What a store holds: the committed adapters, and the one that a name means."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

from jobs.errors import Fault, InputError, NotInStore
from jobs.spec.schema import NAME_PATTERN
from jobs.store.adapters.manifest import (
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
"""Manifests read at once."""

_VERSION = re.compile(r"v?([1-9][0-9]{0,8})")


def scan_adapters(store: ObjectStore) -> tuple[list[Manifest], list[Fault]]:
    """What is committed, and which manifests can't be read: both from one look at the store."""
    keys = [
        key
        for key in store.list("adapters/")
        if key.endswith(f"/{MANIFEST}") and key.count("/") == 3
    ]
    # Threads, because a bucket answers each question only after a while.
    with ThreadPoolExecutor(READER_THREADS) as pool:
        results = list(pool.map(lambda key: _read_or_fault(store, key), keys))
    manifests = [result for result in results if isinstance(result, Manifest)]
    faults = [result for result in results if isinstance(result, Fault)]
    return sorted(manifests, key=lambda manifest: (manifest.name, manifest.version)), faults


def _read_or_fault(store: ObjectStore, key: str) -> Manifest | Fault | None:
    try:
        if parse_manifest_key(key) is None:
            raise BadManifest(key, "its folder is not <name>/v<number>")
        return _read_manifest(store, key)
    except BadManifest as error:
        return Fault(key, error.problem, "Ask for another version, or publish the run again.")
    except NotInStore:
        return None  # removed since it was listed


def list_adapters(store: ObjectStore) -> list[Manifest]:
    """Every committed adapter, in the order of names and versions."""
    return scan_adapters(store)[0]


def list_broken_adapters(store: ObjectStore) -> list[Fault]:
    """Each manifest that is there and can't be read, with the reason."""
    return scan_adapters(store)[1]


def resolve_adapter(store: ObjectStore, reference: str) -> Manifest:
    """What a name means; NotFound names what there is.

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
    """The manifest of one version, or BadManifest."""
    return _read_manifest(store, get_manifest_key(name, version))


def _read_manifest(store: ObjectStore, key: str) -> Manifest:
    info = store.head(key)
    if info is not None and info.size > MAX_MANIFEST_BYTES:
        raise BadManifest(key, f"{info.size} bytes are too many for a manifest")
    return parse_manifest(store.get(key), key)


def split_name(reference: str) -> tuple[str, int | None]:
    """NAME and its version, if it names one; InputError for what is no name."""
    name, separator, version = reference.partition("@")
    match = _VERSION.fullmatch(version)
    is_valid = len(name) <= MAX_NAME_LENGTH and re.fullmatch(NAME_PATTERN, name)
    if not is_valid or (separator and not match):
        problem = f"{reference[:100]!a} is no adapter's name"
        raise InputError([Fault("adapter", problem, "Use NAME, or NAME@v2 for one version.")])
    return name, int(match[1]) if match else None


def _list_names(store: ObjectStore) -> list[str]:
    pairs = (parse_manifest_key(key) for key in store.list("adapters/"))
    return sorted({name for name, _ in filter(None, pairs)})
