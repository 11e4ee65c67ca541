"""The door to object storage: what a store can do, and how a URL opens one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from jobs.errors import Fault, InputError
from jobs.store.directory import DirectoryStore
from jobs.store.keys import Head

__all__ = ["Head", "ObjectStore", "open_store"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)")
_REMEDY = "Use file:// and a folder, for example file://.cache/store."


class ObjectStore(Protocol):
    """Objects under keys. A write is whole or absent: no reader ever sees half of one."""

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Write; with `create_only`, AlreadyThere when the key is taken, decided atomically."""
        ...

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> None:
        """Write what lies at `path`, without holding it in memory."""
        ...

    def get(self, key: str) -> bytes:
        """The whole object, or NotFound."""
        ...

    def open(self, key: str) -> BinaryIO:
        """The object as a stream to read and close, or NotFound."""
        ...

    def head(self, key: str) -> Head | None:
        """What is known of the object; None where there is none."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Every key that starts with `prefix`, in order."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; none under the key is no error."""
        ...

    def url(self, key: str) -> str:
        """Where an object or a prefix lies, for people and for other programs."""
        ...


def open_store(url: str, *, root: Path | None = None) -> ObjectStore:
    """The store behind a URL. Relative folders start at `root`, or where the process is now."""
    scheme = _SCHEME.match(url)
    if not url.strip() or not url.isprintable():
        raise _wrong(f"{url[:100]!a} names no store")
    if scheme is None:
        if url.lower().startswith("file:"):
            raise _wrong(f"{url!r} lacks the slashes of file://")
        return _directory(url, root)
    if scheme[0].lower() == "file":
        return _directory(url[len("file://") :], root)
    if scheme[0].lower() == "s3":
        raise _wrong(f"{url!r}: S3 stores are not available yet")
    raise _wrong(f"{url!r}: there is no store of the kind {scheme[0]}://")


def _directory(folder: str, root: Path | None) -> DirectoryStore:
    if not folder:
        raise _wrong("'file://' names no folder")
    # Resolved at once: Ray changes the working directory under its workers.
    return DirectoryStore((root or Path.cwd()) / Path(folder).expanduser())


def _wrong(problem: str) -> InputError:
    return InputError([Fault("store", problem, _REMEDY)])
