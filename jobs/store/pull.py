"""Pulling an adapter out of the store: into a folder that is whole and verified, or not there.

Nothing is forced to the disk, as no download is: it is a copy, and a machine that loses its power
may lose it. Pull it again then.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from jobs.errors import DigestMismatch, Fault, InputError, NotFound, StoreError
from jobs.store.blobs import blob_key
from jobs.store.manifest import MANIFEST, SIGNATURE, File, Manifest, manifest_bytes
from jobs.store.objects import ObjectStore

Seen = Callable[[int], None]
LARGEST_SIGNATURE = 4096

log = logging.getLogger(__name__)


def pull(store: ObjectStore, manifest: Manifest, to: Path, *, seen: Seen | None = None) -> Path:
    """Put files and manifest in `to`, which may be absent or empty; gives its full path."""
    target = to.expanduser().resolve()
    _check_target(target)
    beside = target.parent / f".{target.name[:200]}.pull-{secrets.token_hex(4)}"
    try:
        beside.mkdir(parents=True)
        for file in manifest.files:
            _copy(store, manifest.prefix, file, beside, seen)
        _write(beside / MANIFEST, manifest_bytes(manifest))
        if store.head(manifest.prefix + SIGNATURE) is not None:
            _write(
                beside / SIGNATURE, store.read(manifest.prefix + SIGNATURE, 0, LARGEST_SIGNATURE)
            )
        # Onto an empty folder this is atomic; onto one that was filled meanwhile it fails.
        beside.rename(target)
    except OSError as error:
        wrong = f"{target} can't be written: {error.strerror or error}"
        raise StoreError(f"{wrong}. Pull into another folder.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def _check_target(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if os.path.lexists(target):
        problem = f"{target} is there already and not an empty folder"
        raise InputError([Fault("to", problem, "Name a folder that is not there yet.")])


def _copy(store: ObjectStore, prefix: str, file: File, folder: Path, seen: Seen | None) -> None:
    """From the adapter's folder; where that has rotted, from the blob of the same digest."""
    path = folder / file.name
    try:
        _fetch(store, prefix + file.name, file, path, seen)
    except (DigestMismatch, NotFound) as rotten:
        path.unlink(missing_ok=True)
        if store.head(blob_key(file.sha256)) is None:
            raise
        _fetch(store, blob_key(file.sha256), file, path, seen)
        log.warning("%s Its blob was taken instead, and is whole.", rotten)


def _fetch(store: ObjectStore, key: str, file: File, path: Path, seen: Seen | None) -> None:
    there = store.head(key)
    if there is not None and there.size != file.size:
        # Before it is fetched: what somebody put there may be larger than the disk.
        raise DigestMismatch(store.url(key), file.sha256, f"{there.size} B")
    found = store.get_file(key, path)
    if found != file.sha256:
        raise DigestMismatch(store.url(key), file.sha256, found)
    if seen:
        seen(file.size)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
