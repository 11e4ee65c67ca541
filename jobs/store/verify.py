"""Verifying a committed adapter: every byte that its manifest speaks of, and nothing besides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobs.errors import Fault, InputError, NotFound
from jobs.model_files import model_digest
from jobs.store.commit import CLAIM
from jobs.store.digest import sha256_of
from jobs.store.folder import TENSORS, tensor_faults
from jobs.store.manifest import MANIFEST, SIGNATURE, File, Manifest
from jobs.store.objects import ObjectStore
from jobs.store.pointer import TOMBSTONE
from jobs.store.tensors import BadTensors, read_header

Seen = Callable[[int], None]

_REPUBLISH = "Use another version, or publish the run again."


def verify(
    store: ObjectStore,
    manifest: Manifest,
    *,
    seen: Seen | None = None,
    base: Path | None = None,
    key: Path | None = None,
) -> list[Fault]:
    """All that is wrong with an adapter: absent, changed, unknown or empty, or another base.

    `base` is where the base model is now; `key` a public key that has to have signed it.
    """
    faults = file_faults(store, manifest, seen=seen)
    faults += _base(manifest, base or Path(manifest.base.path))
    if base is not None and not (base / "config.json").is_file():
        faults.append(Fault("base", f"{base} is no model's folder", "Name the base's folder."))
    return faults + (_signature(store, manifest, key) if key else [])


def file_faults(store: ObjectStore, manifest: Manifest, *, seen: Seen | None = None) -> list[Fault]:
    """All that is wrong with the adapter's own files."""
    faults = [fault for file in manifest.files for fault in _file(store, manifest, file, seen)]
    return faults + _unknown(store, manifest)


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
    known = {MANIFEST, SIGNATURE, CLAIM, TOMBSTONE, *(file.name for file in manifest.files)}
    remedy = "Somebody put it there after the commit: remove it."
    return [
        Fault(key, "the manifest knows no such file", remedy)
        for key in store.list(manifest.prefix)
        if key.removeprefix(manifest.prefix) not in known
    ]


def _signature(store: ObjectStore, manifest: Manifest, key: Path) -> list[Fault]:
    # Here, because cryptography takes a tenth of a second that other commands need not wait for.
    from jobs.store.signing import signature_fault

    fault = signature_fault(store, manifest, key)
    return [fault] if fault else []


def _base(manifest: Manifest, folder: Path) -> list[Fault]:
    """Compared only where the base is at hand: an adapter travels without it."""
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
