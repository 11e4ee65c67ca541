"""The door to object storage: what a store can do, and how a URL opens one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from jobs.errors import Fault, InputError
from jobs.store.keys import Leftover, ObjectInfo, check_key
from jobs.store.local import DirectoryStore
from jobs.store.s3.s3_store import S3Store

__all__ = ["ObjectInfo", "ObjectStore", "open_store"]

# The class below has a method called `list`, which hides the builtin in annotations.
Faults = list[Fault]
Leftovers = list[Leftover]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_URL_REMEDY = "Use file:// and a folder, for example file://.cache/store, or s3://bucket/prefix."


class ObjectStore(Protocol):
    """Objects under keys. A write is whole or absent: no reader ever sees half of one."""

    def put(
        self, key: str, data: bytes, *, create_only: bool = False, if_match: str | None = None
    ) -> str:
        """Write, and give the new etag. Both conditions are decided atomically.

        With `create_only`, AlreadyThere when the key is taken; with `if_match`, Changed unless
        the object there has that etag.
        """
        ...

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> str:
        """Write what lies at `path`, without holding it in memory."""
        ...

    def copy(self, source: str, key: str) -> None:
        """Write the object under `source` under `key` too, without sending it; or NotFound."""
        ...

    def get(self, key: str) -> bytes:
        """The whole object, or NotFound."""
        ...

    def get_file(self, key: str, path: Path) -> str:
        """Write the whole object into the new file `path`, and give the SHA-256 of what lies there.

        Holds little of it in memory. Not forced to the disk: whoever relies on that does it.
        """
        ...

    def read(self, key: str, start: int, length: int | None = None) -> bytes:
        """A part of the object, as much of it as there is: nothing beyond its end. Or NotFound."""
        ...

    def open(self, key: str) -> BinaryIO:
        """The object as a stream to read and close, or NotFound."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object; None where there is none."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Every key that starts with `prefix`, in order."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; none under the key is no error."""
        ...

    def list_leftovers(self) -> Leftovers:
        """What writers left that died while they wrote, and what living ones are at now."""
        ...

    def discard(self, leftover: Leftover) -> None:
        """Remove a leftover; one that is gone is no error."""
        ...

    def url(self, key: str) -> str:
        """Where an object or a prefix lies, for people and for other programs."""
        ...

    def check_writable(self) -> Faults:
        """What stands between this process and a commit, tried for real."""
        ...


def open_store(url: str, *, root: Path | None = None) -> ObjectStore:
    """The store behind a URL. Relative folders start at `root`, or where the process is now."""
    scheme = _SCHEME.match(url)
    if not url.strip() or not url.isprintable():
        raise _make_error(f"{url[:100]!a} names no store")
    if scheme is None:
        if url.lower().startswith("file:"):
            raise _make_error(f"{url!r} lacks the slashes of file://")
        return _open_directory(url, root)
    if scheme[0].lower() == "file":
        return _open_directory(url[len("file://") :], root)
    if scheme[0].lower() == "s3":
        return _open_bucket(url[len("s3://") :])
    raise _make_error(f"{url!r}: there is no store of the kind {scheme[0]}://")


def _open_directory(folder: str, root: Path | None) -> DirectoryStore:
    if not folder:
        raise _make_error("'file://' names no folder")
    # Resolved at once: Ray changes the working directory under its workers.
    return DirectoryStore((root or Path.cwd()) / Path(folder).expanduser())


def _open_bucket(address: str) -> S3Store:
    bucket, _, prefix = address.partition("/")
    if "@" in bucket:
        # Not shown: what stands before the @ is a key.
        raise _make_error(
            "an s3:// store is named with credentials, which belong in the environment"
        )
    if not _BUCKET.fullmatch(bucket):
        raise _make_error(f"{bucket[:100]!a} is no bucket's name")
    if prefix := prefix.strip("/"):
        check_key(prefix)
    return S3Store(bucket, prefix)


def _make_error(problem: str) -> InputError:
    return InputError([Fault("store", problem, _URL_REMEDY)])
