"""The interface of an object store, and the values that it returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True)
class ObjectInfo:
    """What a store reports about an object without sending it."""

    size: int
    etag: str = ""
    """Differs for different bytes; compare-and-swap compares it."""
    modified: float = 0.0
    """Seconds since 1970, by the store's own clock."""


@dataclass(frozen=True)
class Leftover:
    """Debris of a writer that died during a write: it is not an object, and no reader sees it."""

    name: str
    size: int
    modified: float
    upload_id: str | None = None
    """The id of an unfinished multipart upload."""


# The class below has a method called `list`, which hides the builtin in annotations.
Leftovers = list[Leftover]


class ObjectStore(Protocol):
    """Objects under keys. A write is complete or absent: no reader ever sees half of an object."""

    def put(
        self, key: str, data: bytes, *, create_only: bool = False, if_match: str | None = None
    ) -> str:
        """Write an object and return its etag. The store decides both conditions atomically.

        With `create_only`, raise AlreadyExists if the key exists; with `if_match`, raise
        WriteConflict unless the existing object has that etag.
        """

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> str:
        """Write the file at `path` without holding it in memory, and return the etag."""

    def copy(self, source: str, key: str) -> None:
        """Copy an object inside the store, without sending it. Raise NotInStore if it is absent."""

    def get(self, key: str) -> bytes:
        """Return the bytes of an object. Raise NotInStore if it is absent."""

    def get_file(self, key: str, path: Path) -> str:
        """Write an object into the new file `path`, and return the SHA-256 of that file.

        Uses little memory. The file is not synced: a caller that needs it durable syncs it.
        """

    def read(self, key: str, start: int, length: int | None = None) -> bytes:
        """Return a range of an object, cut at its end. Raise NotInStore if it is absent."""

    def open(self, key: str) -> BinaryIO:
        """Open an object as a stream, which the caller closes. Raise NotInStore if absent."""

    def head(self, key: str) -> ObjectInfo | None:
        """Return size, etag and time of an object, or None if it is absent."""

    def measure_age(self, key: str) -> float | None:
        """Return the seconds since an object was written, or None if it is absent.

        Both times are by the store's own clock: those of the writer and of this machine may differ.
        """

    def list(self, prefix: str) -> Iterator[str]:
        """Return all keys that start with `prefix`, in order."""

    def delete(self, key: str) -> None:
        """Delete an object. An absent object is no error."""

    def list_leftovers(self) -> Leftovers:
        """Return the debris of dead writers, and the unfinished writes of living ones."""

    def discard(self, leftover: Leftover) -> None:
        """Remove a leftover. An absent one is no error."""

    def url(self, key: str) -> str:
        """Return the URL of an object or a prefix, for people and other programs."""

    def local_path(self, key: str) -> Path | None:
        """Return the path of an object on a file system, or None if the store has none.

        A caller may append to this path.
        """

    def check_writable(self) -> str | None:
        """Write, read back and delete test data. Return why a commit would fail, or None."""
