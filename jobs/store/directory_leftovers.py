"""What writers who died have left in a directory store: temporary files, and folders of probes."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from jobs.store.keys import HIDDEN, Leftover

LOCK = "lock"
PROBE = f"{HIDDEN}-probe-"
"""How the folders are called in which a store is tried out, wherever in it."""
PARTS = ("adapters", "runs")


def leftovers(root: Path) -> list[Leftover]:
    """All of them, those of writers who still live too: their times tell."""
    return sorted(_found(root), key=lambda leftover: leftover.name)


def discard(root: Path, leftover: Leftover) -> None:
    """Remove one, if it is still there."""
    path = root / leftover.name
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
        return
    with suppress(FileNotFoundError):
        path.unlink()


def _found(root: Path) -> Iterator[Leftover]:
    for entry in _entries(root / HIDDEN):
        if entry.name != LOCK:
            yield _leftover(root, entry)
    for folder in (root, *(root / part for part in PARTS)):
        for entry in _entries(folder):
            if entry.name.startswith(PROBE) and entry.is_dir(follow_symlinks=False):
                yield _leftover(root, entry)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    # A link may lead out of the store, where nothing is ours.
    if folder.is_symlink() or not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return list(entries)


def _leftover(root: Path, entry: os.DirEntry[str]) -> Leftover:
    """Of a folder, the youngest time in it: somebody may still be at work there."""
    path = Path(entry.path)
    inside = path.rglob("*") if entry.is_dir(follow_symlinks=False) else ()
    found = [one.lstat() for one in (path, *inside) if os.path.lexists(one)]
    return Leftover(
        name=path.relative_to(root).as_posix(),
        size=sum(one.st_size for one in found if not stat.S_ISDIR(one.st_mode)),
        modified=max((one.st_mtime for one in found), default=float("inf")),
    )
