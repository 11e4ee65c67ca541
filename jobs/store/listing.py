"""What a store holds: the committed adapters, and the one that a name means."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

from jobs.errors import Fault, InputError, NotFound
from jobs.spec import NAME_PATTERN
from jobs.store.manifest import (
    LARGEST_MANIFEST,
    LONGEST_NAME,
    MANIFEST,
    BadManifest,
    Manifest,
    manifest_key,
    parse_manifest,
    read_manifest_key,
)
from jobs.store.objects import ObjectStore
from jobs.store.pointer import read_pointer
from jobs.store.versions import committed_versions

READERS = 16
"""Manifests read at once."""

_VERSION = re.compile(r"v?([1-9][0-9]{0,8})")


def survey(store: ObjectStore) -> tuple[list[Manifest], list[Fault]]:
    """What is committed, and which manifests can't be read: both from one look at the store."""
    keys = [
        key
        for key in store.list("adapters/")
        if key.endswith(f"/{MANIFEST}") and key.count("/") == 3
    ]
    # Threads, because a bucket answers each question only after a while.
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(lambda key: _found(store, key), keys))
    manifests = [one for one in found if isinstance(one, Manifest)]
    faults = [one for one in found if isinstance(one, Fault)]
    return sorted(manifests, key=lambda manifest: (manifest.name, manifest.version)), faults


def _found(store: ObjectStore, key: str) -> Manifest | Fault | None:
    try:
        if read_manifest_key(key) is None:
            raise BadManifest(key, "its folder is not <name>/v<number>")
        return _read(store, key)
    except BadManifest as error:
        return Fault(key, error.problem, "Ask for another version, or publish the run again.")
    except NotFound:
        return None  # removed since it was listed


def list_adapters(store: ObjectStore) -> list[Manifest]:
    """Every committed adapter, in the order of names and versions."""
    return survey(store)[0]


def broken_adapters(store: ObjectStore) -> list[Fault]:
    """Each manifest that is there and can't be read, with the reason."""
    return survey(store)[1]


def resolve(store: ObjectStore, wanted: str) -> Manifest:
    """What a name means; NotFound names what there is.

    NAME is the promoted version, or the newest where none was promoted; NAME@v2 and NAME@2 are
    that one.
    """
    name, version = split_name(wanted)
    versions = committed_versions(store, name)
    if not versions:
        raise NotFound(f"The adapter {name}", _names(store))
    if version is None:
        pointer = read_pointer(store, name)
        version = pointer.version if pointer else versions[-1]
    if version not in versions:
        raise NotFound(f"{name}@v{version}", [f"{name}@v{number}" for number in versions])
    return read_committed(store, name, version)


def read_committed(store: ObjectStore, name: str, version: int) -> Manifest:
    """The manifest of one version, or BadManifest."""
    return _read(store, manifest_key(name, version))


def _read(store: ObjectStore, key: str) -> Manifest:
    head = store.head(key)
    if head is not None and head.size > LARGEST_MANIFEST:
        raise BadManifest(key, f"{head.size} bytes are too many for a manifest")
    return parse_manifest(store.get(key), key)


def split_name(wanted: str) -> tuple[str, int | None]:
    """NAME and its version, if it names one; InputError for what is no name."""
    name, at, version = wanted.partition("@")
    number = _VERSION.fullmatch(version)
    sound = len(name) <= LONGEST_NAME and re.fullmatch(NAME_PATTERN, name)
    if not sound or (at and not number):
        problem = f"{wanted[:100]!a} is no adapter's name"
        raise InputError([Fault("adapter", problem, "Use NAME, or NAME@v2 for one version.")])
    return name, int(number[1]) if number else None


def _names(store: ObjectStore) -> list[str]:
    found = (read_manifest_key(key) for key in store.list("adapters/"))
    return sorted({name for name, _ in filter(None, found)})
