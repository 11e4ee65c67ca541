"""Stamps of files: what changes when somebody writes to one, read without its content."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FileStamp:
    """The path, the size and the times of a file."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    """Changes also where a copy keeps the size and the time of the file that it replaces."""


def stamp_files(paths: Iterable[Path]) -> tuple[FileStamp, ...]:
    """Return the stamps of files, in their order. Raise OSError if one does not exist."""
    stamps = []
    for path in paths:
        status = path.stat()
        stamp = FileStamp(str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        stamps.append(stamp)
    return tuple(stamps)
