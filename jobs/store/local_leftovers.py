"""Find and remove the debris of dead writers in a directory store."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from jobs.store.base import Leftover
from jobs.store.keys import HIDDEN_PREFIX

LOCK_NAME = "lock"
PROBE_PREFIX = f"{HIDDEN_PREFIX}-probe-"
"""The start of the names of probe folders, anywhere in a store."""
PROBED_FOLDERS = ("adapters", "runs")


def list_leftovers(root: Path) -> list[Leftover]:
    """Return all leftovers, and the unfinished writes of living writers: their times differ."""
    return sorted(_find_leftovers(root), key=lambda leftover: leftover.name)


def discard_leftover(root: Path, leftover: Leftover) -> None:
    """Remove a leftover if it still exists."""
    path = root / leftover.name
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
        return
    with suppress(FileNotFoundError):
        path.unlink()


def _find_leftovers(root: Path) -> Iterator[Leftover]:
    for entry in _list_entries(root / HIDDEN_PREFIX):
        if entry.name != LOCK_NAME:
            yield _describe_leftover(root, entry)
    for folder in (root, *(root / name for name in PROBED_FOLDERS)):
        for entry in _list_entries(folder):
            if entry.name.startswith(PROBE_PREFIX) and entry.is_dir(follow_symlinks=False):
                yield _describe_leftover(root, entry)


def _list_entries(folder: Path) -> list[os.DirEntry[str]]:
    # A link may lead out of the store, to files of others.
    if folder.is_symlink() or not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return list(entries)


def _describe_leftover(root: Path, entry: os.DirEntry[str]) -> Leftover:
    """Return an entry as a leftover. A folder has the newest time in it: it may be in use."""
    path = Path(entry.path)
    contents = path.rglob("*") if entry.is_dir(follow_symlinks=False) else ()
    stats = [item.lstat() for item in (path, *contents) if os.path.lexists(item)]
    return Leftover(
        name=path.relative_to(root).as_posix(),
        size=sum(item.st_size for item in stats if not stat.S_ISDIR(item.st_mode)),
        modified=max((item.st_mtime for item in stats), default=float("inf")),
    )
