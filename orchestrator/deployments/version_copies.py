"""Copies of versions in a folder that a server reads: complete and verified, or absent."""

from __future__ import annotations

import shutil
from pathlib import Path

from jobs.errors import InputError, StoreError
from jobs.store.adapters.manifest import (
    MANIFEST,
    BadManifest,
    Manifest,
    get_manifest_key,
    parse_manifest,
)
from jobs.store.adapters.pull import pull
from jobs.store.base import ObjectStore


def make_copy(folder: Path, name: str, store: ObjectStore, manifest: Manifest) -> Path:
    """Return the folder of a version's copy, which is pulled unless it is there already.

    Raise StoreError. Several processes may do so at once.
    """
    target = folder / name
    if _is_copy(target, manifest):
        return target
    shutil.rmtree(target, ignore_errors=True)
    try:
        pull(store, manifest, target)
    except (StoreError, InputError):
        if not _is_copy(target, manifest):
            raise  # otherwise another process was faster
    return target


def remove_copy(folder: Path, name: str) -> None:
    """Delete the copy of a version. An absent one is no error."""
    shutil.rmtree(folder / name, ignore_errors=True)


def _is_copy(target: Path, manifest: Manifest) -> bool:
    """Return whether a folder is a complete copy: its manifest appears with all other files."""
    key = get_manifest_key(manifest.name, manifest.version)
    try:
        return parse_manifest((target / MANIFEST).read_bytes(), key) == manifest
    except (OSError, BadManifest):
        return False
