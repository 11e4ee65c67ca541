"""Verifying a committed adapter: every byte that its manifest speaks of, and nothing besides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobs.errors import Fault, InputError, NotFound
from jobs.model_files import model_digest
from jobs.store.commit import CLAIM
from jobs.store.digest import sha256_of
from jobs.store.folder import TENSORS, tensor_faults
from jobs.store.manifest import MANIFEST, File, Manifest
from jobs.store.objects import ObjectStore
from jobs.store.tensors import BadTensors, read_header

Seen = Callable[[int], None]

_REPUBLISH = "Use another version, or publish the run again."


def verify(store: ObjectStore, manifest: Manifest, *, seen: Seen | None = None) -> list[Fault]:
    """All that is wrong with an adapter: absent, changed, unknown or empty, or another base."""
    faults = [fault for file in manifest.files for fault in _file(store, manifest, file, seen)]
    return faults + _unknown(store, manifest) + _base(manifest)


def _file(store: ObjectStore, manifest: Manifest, file: File, seen: Seen | None) -> list[Fault]:
    key = manifest.prefix + file.name
    try:
        return _bytes(store, key, file, seen)
    except NotFound:
        return [Fault(key, "the file is absent", _REPUBLISH)]
    except InputError as error:  # a link that leads out of the store
        return list(error.faults)


def _bytes(store: ObjectStore, key: str, file: File, seen: Seen | None) -> list[Fault]:
    head = store.head(key)
    if head is not None and head.size != file.size:
        problem = f"it has {head.size} bytes, the manifest says {file.size}"
        return [Fault(key, problem, _REPUBLISH)]
    with store.open(key) as stream:
        found = sha256_of(stream, seen)
    if found != file.sha256:
        problem = f"its digest is {found[:12]}, the manifest says {file.sha256[:12]}"
        return [Fault(key, problem, _REPUBLISH)]
    return _tensors(store, key, file.size) if file.name.endswith(TENSORS) else []


def _tensors(store: ObjectStore, key: str, size: int) -> list[Fault]:
    try:
        with store.open(key) as stream:
            return tensor_faults(key, read_header(stream, size=size))
    except BadTensors as error:
        return [Fault(key, str(error), _REPUBLISH)]


def _unknown(store: ObjectStore, manifest: Manifest) -> list[Fault]:
    known = {MANIFEST, CLAIM, *(file.name for file in manifest.files)}
    remedy = "Somebody put it there after the commit: remove it."
    return [
        Fault(key, "the manifest knows no such file", remedy)
        for key in store.list(manifest.prefix)
        if key.removeprefix(manifest.prefix) not in known
    ]


def _base(manifest: Manifest) -> list[Fault]:
    """Compared only where the base is at hand: an adapter travels without it."""
    folder = Path(manifest.base.path)
    try:
        if not (folder / "config.json").is_file():
            return []
        found = model_digest(folder)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        return [
            Fault("base", f"{manifest.base.path!a} can't be read: {error}", "Check its folder.")
        ]
    if found == manifest.base.digest:
        return []
    problem = f"{folder} has the digest {found[:12]}, trained on {manifest.base.digest[:12]}"
    return [Fault("base", problem, "Use the base model that the adapter was trained on.")]
