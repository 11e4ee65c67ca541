"""What a store holds: the committed adapters, and the one that a name means."""

from __future__ import annotations

import re

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

_VERSION = re.compile(r"v?([1-9][0-9]{0,8})")


def survey(store: ObjectStore) -> tuple[list[Manifest], list[Fault]]:
    """What is committed, and which manifests can't be read: both from one look at the store."""
    manifests, faults = list[Manifest](), list[Fault]()
    for key in store.list("adapters/"):
        if key.count("/") != 3 or not key.endswith(f"/{MANIFEST}"):
            continue
        try:
            if read_manifest_key(key) is None:
                raise BadManifest(key, "its folder is not <name>/v<number>")
            manifests.append(_read(store, key))
        except BadManifest as error:
            remedy = "Ask for another version, or publish the run again."
            faults.append(Fault(key, error.problem, remedy))
        except NotFound:
            continue  # removed since it was listed
    return sorted(manifests, key=lambda manifest: (manifest.name, manifest.version)), faults


def list_adapters(store: ObjectStore) -> list[Manifest]:
    """Every committed adapter, in the order of names and versions."""
    return survey(store)[0]


def broken_adapters(store: ObjectStore) -> list[Fault]:
    """Each manifest that is there and can't be read, with the reason."""
    return survey(store)[1]


def resolve(store: ObjectStore, wanted: str) -> Manifest:
    """What NAME (its newest version), NAME@v2 or NAME@2 means; NotFound names what there is."""
    name, version = _split(wanted)
    versions = committed_versions(store, name)
    if not versions:
        raise NotFound(f"The adapter {name}", _names(store))
    if version is None:
        return read_committed(store, name, versions[-1])
    if version not in versions:
        raise NotFound(f"{name}@v{version}", [f"{name}@v{number}" for number in versions])
    return read_committed(store, name, version)


def committed_versions(store: ObjectStore, name: str) -> list[int]:
    """The versions of one name that have a manifest, in order."""
    found = (read_manifest_key(key) for key in store.list(f"adapters/{name}/"))
    return sorted(version for _, version in filter(None, found))


def read_committed(store: ObjectStore, name: str, version: int) -> Manifest:
    """The manifest of one version, or BadManifest."""
    return _read(store, manifest_key(name, version))


def _read(store: ObjectStore, key: str) -> Manifest:
    head = store.head(key)
    if head is not None and head.size > LARGEST_MANIFEST:
        raise BadManifest(key, f"{head.size} bytes are too many for a manifest")
    return parse_manifest(store.get(key), key)


def _split(wanted: str) -> tuple[str, int | None]:
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
