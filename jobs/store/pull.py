"""Pulling an adapter out of the store: into a folder that is whole and verified, or not there."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from jobs.errors import DigestMismatch, Fault, InputError, StoreError
from jobs.store.digest import CHUNK
from jobs.store.manifest import MANIFEST, File, Manifest, manifest_bytes
from jobs.store.objects import ObjectStore

Seen = Callable[[int], None]


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
    digest = hashlib.sha256()
    with store.open(prefix + file.name) as source, (folder / file.name).open("xb") as copy:
        while piece := source.read(CHUNK):
            digest.update(piece)
            copy.write(piece)
            if seen:
                seen(len(piece))
        copy.flush()
        os.fsync(copy.fileno())
    if digest.hexdigest() != file.sha256:
        raise DigestMismatch(store.url(prefix + file.name), file.sha256, digest.hexdigest())


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
