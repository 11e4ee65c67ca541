"""Open the object store behind a URL."""

from __future__ import annotations

import re
from pathlib import Path

from jobs.errors import Fault, InputError
from jobs.store.base import ObjectStore
from jobs.store.keys import check_key
from jobs.store.local import DirectoryStore
from jobs.store.s3.s3_store import S3Store

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_URL_REMEDY = "Use file:// and a folder, for example file://.cache/store, or s3://bucket/prefix."


def open_store(url: str, *, root: Path | None = None) -> ObjectStore:
    """Return the store of a URL. A relative folder starts at `root` or the working directory."""
    scheme = _SCHEME.match(url)
    if not url.strip() or not url.isprintable():
        raise _make_error(f"{url[:100]!a} is not a URL of a store")
    if scheme is None:
        if url.lower().startswith("file:"):
            raise _make_error(f"{url!r} lacks the slashes of file://")
        return _open_directory(url, root)
    if scheme[0].lower() == "file":
        return _open_directory(url[len("file://") :], root)
    if scheme[0].lower() == "s3":
        return _open_bucket(url[len("s3://") :])
    raise _make_error(f"{url!r}: {scheme[0]}:// is not supported")


def _open_directory(folder: str, root: Path | None) -> DirectoryStore:
    if not folder:
        raise _make_error("'file://' has no path")
    # Resolved at once: Ray changes the working directory of its workers.
    return DirectoryStore((root or Path.cwd()) / Path(folder).expanduser())


def _open_bucket(address: str) -> S3Store:
    bucket, _, prefix = address.partition("/")
    if "@" in bucket:
        # Not printed: the text before the @ is a key.
        raise _make_error("an s3:// URL must not hold credentials; set them in the environment")
    if not _BUCKET.fullmatch(bucket):
        raise _make_error(f"{bucket[:100]!a} is not a valid bucket name")
    if prefix := prefix.strip("/"):
        check_key(prefix)
    return S3Store(bucket, prefix)


def _make_error(problem: str) -> InputError:
    return InputError([Fault("store", problem, _URL_REMEDY)])
