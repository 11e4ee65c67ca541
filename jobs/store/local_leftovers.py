"""What writers who died have left in a directory store: temporary files, and folders of probes."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from jobs.store.keys import HIDDEN_PREFIX, Leftover

LOCK_NAME = "lock"
PROBE_PREFIX = f"{HIDDEN_PREFIX}-probe-"
"""How the folders are called in which a store is tried out, wherever in it."""
PROBED_FOLDERS = ("adapters", "runs")


def list_leftovers(root: Path) -> list[Leftover]:
    """All of them, those of writers who still live too: their times tell."""
    return sorted(_find_leftovers(root), key=lambda leftover: leftover.name)


def discard_leftover(root: Path, leftover: Leftover) -> None:
    """Remove one, if it is still there."""
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
    # A link may lead out of the store, where nothing is ours.
    if folder.is_symlink() or not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return list(entries)


def _describe_leftover(root: Path, entry: os.DirEntry[str]) -> Leftover:
    """Of a folder, the youngest time in it: somebody may still be at work there."""
    path = Path(entry.path)
    contents = path.rglob("*") if entry.is_dir(follow_symlinks=False) else ()
    stats = [item.lstat() for item in (path, *contents) if os.path.lexists(item)]
    return Leftover(
        name=path.relative_to(root).as_posix(),
        size=sum(item.st_size for item in stats if not stat.S_ISDIR(item.st_mode)),
        modified=max((item.st_mtime for item in stats), default=float("inf")),
    )
