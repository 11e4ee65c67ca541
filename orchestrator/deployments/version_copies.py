"""Copies of versions in a folder that a server reads: complete and verified, or absent."""

from __future__ import annotations

import shutil
from pathlib import Path

from jobs.store.adapters.manifest import MANIFEST, Manifest, encode_manifest
from jobs.store.adapters.pull import pull
from jobs.store.base import ObjectStore


def make_copy(folder: Path, name: str, store: ObjectStore, manifest: Manifest) -> Path:
    """Return the folder of a version's copy, which is pulled unless it is there already.

    Raise StoreError. Several processes may do so at once.
    """
    target = folder / name
    if _read_manifest(target) not in (None, encode_manifest(manifest)):
        shutil.rmtree(target, ignore_errors=True)
    if _read_manifest(target) is None:
        shutil.rmtree(target, ignore_errors=True)
        pull(store, manifest, target)
    return target


def remove_copy(folder: Path, name: str) -> None:
    """Delete the copy of a version. An absent one is no error."""
    shutil.rmtree(folder / name, ignore_errors=True)


def _read_manifest(target: Path) -> bytes | None:
    try:
        return (target / MANIFEST).read_bytes()
    except OSError:
        return None
