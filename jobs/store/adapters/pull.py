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

from jobs.errors import DigestMismatch, Fault, InputError, NotInStore, StoreError
from jobs.store.adapters.manifest import MANIFEST, SIGNATURE, AdapterFile, Manifest, encode_manifest
from jobs.store.base import ObjectStore
from jobs.store.blobs import get_blob_key

OnBytes = Callable[[int], None]
MAX_SIGNATURE_BYTES = 4096

log = logging.getLogger(__name__)


def pull(
    store: ObjectStore, manifest: Manifest, to: Path, *, on_bytes: OnBytes | None = None
) -> Path:
    """Write files and manifest to `to`, which must be absent or empty, and return its path."""
    target = to.expanduser().resolve()
    _check_target(target)
    temporary = target.parent / f".{target.name[:200]}.pull-{secrets.token_hex(4)}"
    try:
        temporary.mkdir(parents=True)
        for file in manifest.files:
            _copy_file(store, manifest.prefix, file, temporary, on_bytes)
        _write_new(temporary / MANIFEST, encode_manifest(manifest))
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
