"""Verify a committed adapter: every byte of the files in its manifest, and no other files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobs.errors import Fault, InputError, NotInStore
from jobs.inspect.base_digest import find_base_change
from jobs.inspect.model_folder import find_model_folder
from jobs.store.adapters.adapter_dir import TENSORS_SUFFIX, check_tensors
from jobs.store.adapters.commit import CLAIM
from jobs.store.adapters.manifest import (
    MANIFEST,
    SIGNATURE,
    AdapterFile,
    BaseRecord,
    Manifest,
)
from jobs.store.adapters.pointer import TOMBSTONE
from jobs.store.adapters.safetensors_header import BadTensors, read_header
from jobs.store.base import ObjectStore
from jobs.store.digest import compute_sha256
from jobs.store.trust.statements import find_project
from jobs.store.trust.trust_policy import make_trust_policy

OnBytes = Callable[[int], None]

_REPUBLISH = "Use another version, or publish the run again."


def verify_adapter(
    store: ObjectStore,
    manifest: Manifest,
    *,
    on_bytes: OnBytes | None = None,
    base: Path | None = None,
    key: Path | None = None,
) -> list[Fault]:
    """Return all faults of an adapter: absent, changed, unknown or empty files, another base.

    `base` is where the base model is now; `key` a public key that has to have signed it.
    """
    faults = check_files(store, manifest, on_bytes=on_bytes)
    faults += _check_base(manifest, base)
    if base is not None and not (base / "config.json").is_file():
        problem = f"{base} is not the folder of a model"
        faults.append(Fault("base", problem, "Use the folder of the base model."))
    return faults + (_check_signature(store, manifest, key) if key else [])


def check_files(
    store: ObjectStore, manifest: Manifest, *, on_bytes: OnBytes | None = None
) -> list[Fault]:
    """Return all faults of the files of an adapter."""
    faults = [
        fault for file in manifest.files for fault in _check_file(store, manifest, file, on_bytes)
    ]
    return faults + _find_unknown_files(store, manifest)


def _check_file(
    store: ObjectStore, manifest: Manifest, file: AdapterFile, on_bytes: OnBytes | None
) -> list[Fault]:
    key = manifest.prefix + file.name
    try:
        return _check_bytes(store, key, file, on_bytes)
    except NotInStore:
        return [Fault(key, "the file is missing", _REPUBLISH)]
    except InputError as error:  # a link that leads out of the store
        return list(error.faults)


def _check_bytes(
    store: ObjectStore, key: str, file: AdapterFile, on_bytes: OnBytes | None
) -> list[Fault]:
    info = store.head(key)
    if info is not None and info.size != file.size:
        problem = f"the file has {info.size} bytes, but the manifest says {file.size}"
        return [Fault(key, problem, _REPUBLISH)]
    with store.open(key) as stream:
        digest = compute_sha256(stream, on_bytes)
    if digest != file.sha256:
        problem = f"the digest is {digest[:12]}, but the manifest says {file.sha256[:12]}"
        return [Fault(key, problem, _REPUBLISH)]
    return _check_tensors(store, key, file.size) if file.name.endswith(TENSORS_SUFFIX) else []


def _check_tensors(store: ObjectStore, key: str, size: int) -> list[Fault]:
    try:
        with store.open(key) as stream:
            return check_tensors(key, read_header(stream, size=size))
    except BadTensors as error:
        return [Fault(key, str(error), _REPUBLISH)]


def _find_unknown_files(store: ObjectStore, manifest: Manifest) -> list[Fault]:
    known = {MANIFEST, SIGNATURE, CLAIM, TOMBSTONE, *(file.name for file in manifest.files)}
    remedy = "Delete the file: it was added after the commit."
    return [
        Fault(key, "the manifest does not list this file", remedy)
        for key in store.list(manifest.prefix)
        if key.removeprefix(manifest.prefix) not in known
    ]


def _check_signature(store: ObjectStore, manifest: Manifest, key: Path) -> list[Fault]:
    # Imported here because cryptography takes 0.1 s to import.
    from jobs.store.trust.version_trust import find_version_fault, read_manifest_bytes

    policy = make_trust_policy([str(key)], setting="--key")
    data = read_manifest_bytes(store, manifest.name, manifest.version)
    fault = find_version_fault(store, manifest, data, policy, find_project(store.url("")))
    return [fault] if fault else []


def _check_base(manifest: Manifest, base: Path | None) -> list[Fault]:
    """Compare the digest of the base model if it exists here: an adapter travels without it."""
    record = manifest.base
    try:
        folder = base or _find_recorded_base(record)
        if folder is None or not (folder / "config.json").is_file():
            return []
        change = find_base_change(record, folder)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        problem = f"{record.path!a} cannot be read: {error}"
        return [Fault("base", problem, "Check the path and the permissions of the folder.")]
    if change is None:
        return []
    problem = f"{folder} is not the base that the adapter was trained on: {change}"
    return [Fault("base", problem, "Use the base model that the adapter was trained on.")]


def _find_recorded_base(record: BaseRecord) -> Path | None:
    """Return the folder of the base on this machine. One in a bucket is not downloaded."""
    if "://" in record.path:
        return None
    return find_model_folder(record.path, record.revision)
