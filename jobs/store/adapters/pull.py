"""Pull an adapter from the store into a folder, which is complete and verified or absent.

The files are not synced: they are copies, and a machine that loses power can pull them again.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from jobs.errors import DigestMismatch, Fault, InputError, NotInStore, StoreError, Untrusted
from jobs.store.adapters.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SIGNATURE,
    AdapterFile,
    BadManifest,
    Manifest,
    encode_manifest,
    get_manifest_key,
    parse_manifest,
)
from jobs.store.base import ObjectStore
from jobs.store.blobs import get_blob_key
from jobs.store.trust.trust_policy import demand_signature, read_trust_policy

OnBytes = Callable[[int], None]
MAX_SIGNATURE_BYTES = 4096

log = logging.getLogger(__name__)


def pull(
    store: ObjectStore,
    manifest: Manifest,
    to: Path,
    *,
    on_bytes: OnBytes | None = None,
    own_run: str | None = None,
) -> Path:
    """Write files and manifest to `to`, which must be absent or empty, and return its path.

    Raise Untrusted if the trust policy refuses the version; `own_run` as in `resolve_adapter`.
    """
    target = to.expanduser().resolve()
    _check_target(target)
    data = _read_manifest_bytes(store, manifest, own_run)
    temporary = target.parent / f".{target.name[:200]}.pull-{secrets.token_hex(4)}"
    try:
        temporary.mkdir(parents=True)
        for file in manifest.files:
            _copy_file(store, manifest.prefix, file, temporary, on_bytes)
        _write_new(temporary / MANIFEST, data)
        if store.head(manifest.prefix + SIGNATURE) is not None:
            _write_new(
                temporary / SIGNATURE,
                store.read(manifest.prefix + SIGNATURE, 0, MAX_SIGNATURE_BYTES),
            )
        # Atomic for an absent or empty folder; fails for one that was filled meanwhile.
        temporary.rename(target)
    except OSError as error:
        problem = f"{target} cannot be written: {error.strerror or error}"
        raise StoreError(f"{problem}. Pull into another folder.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _read_manifest_bytes(store: ObjectStore, manifest: Manifest, own_run: str | None) -> bytes:
    """Return the bytes of the manifest, which its signature is for. Raise Untrusted."""
    key = get_manifest_key(manifest.name, manifest.version)
    is_demanded = read_trust_policy() is not None
    try:
        data = store.read(key, 0, MAX_MANIFEST_BYTES + 1)
        is_same = parse_manifest(data, key) == manifest
    except (NotInStore, BadManifest):
        if is_demanded:
            raise
        is_same = False  # replaced or deleted meanwhile; the files are still compared
    if not is_same and is_demanded:
        problem = "its manifest was replaced after it was read"
        raise Untrusted(manifest.label, problem, "Try again.")
    if not is_same:
        return encode_manifest(manifest)
    if own_run is None or own_run not in (manifest.run, manifest.search):
        demand_signature(store, manifest, data)
    return data


def _check_target(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if os.path.lexists(target):
        problem = f"{target} already exists and is not an empty folder"
        raise InputError([Fault("to", problem, "Use a folder that does not exist yet.")])


def _copy_file(
    store: ObjectStore, prefix: str, file: AdapterFile, folder: Path, on_bytes: OnBytes | None
) -> None:
    """Fetch a file of the adapter; if that is corrupt or absent, the blob of the same digest."""
    path = folder / file.name
    try:
        _fetch_verified(store, prefix + file.name, file, path, on_bytes)
    except (DigestMismatch, NotInStore) as error:
        path.unlink(missing_ok=True)
        if store.head(get_blob_key(file.sha256)) is None:
            raise
        _fetch_verified(store, get_blob_key(file.sha256), file, path, on_bytes)
        log.warning("%s Its blob is intact and was used instead.", error)


def _fetch_verified(
    store: ObjectStore, key: str, file: AdapterFile, path: Path, on_bytes: OnBytes | None
) -> None:
    info = store.head(key)
    if info is not None and info.size != file.size:
        # Before the download: a replaced file may be larger than the disk.
        raise DigestMismatch(store.url(key), file.sha256, f"{info.size} B")
    digest = store.get_file(key, path)
    if digest != file.sha256:
        raise DigestMismatch(store.url(key), file.sha256, digest)
    if on_bytes:
        on_bytes(file.size)


def _write_new(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
