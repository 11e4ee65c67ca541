"""Open the object store behind a URL."""

from __future__ import annotations

import os
from pathlib import Path

from jobs.errors import Fault, InputError
from jobs.store.address import find_address_fault
from jobs.store.base import ObjectStore
from jobs.store.keys import check_key
from jobs.store.local import DirectoryStore
from jobs.store.settings import read_store_settings

_URL_REMEDY = "Use file:// and a folder, for example file://.cache/store, or s3://bucket/prefix."


def open_store(url: str, *, root: Path | None = None) -> ObjectStore:
    """Return the store of a URL. A relative folder starts at `root` or the working directory."""
    if not url.strip() or not url.isprintable():
        raise _make_error(f"{url[:100]!a} is not a URL of a store")
    if (fault := find_address_fault("store", url, _URL_REMEDY)) is not None:
        raise InputError([fault])
    if url.startswith("s3://"):
        return _open_bucket(url.removeprefix("s3://"))
    return _open_directory(url.removeprefix("file://"), root)


def _open_directory(folder: str, root: Path | None) -> DirectoryStore:
    if not folder:
        raise _make_error("'file://' has no path")
    # Resolved at once: Ray changes the working directory of its workers.
    return DirectoryStore((root or Path.cwd()) / os.path.expanduser(folder))


def _open_bucket(address: str) -> ObjectStore:
    """Open a bucket, without a request. Raise InputError if boto3's settings allow none."""
    # Imported here: boto3 takes 0.2 s in every process of a run, which a folder does without.
    from jobs.store.s3.boto_client import get_client
    from jobs.store.s3.environment import check_bucket
    from jobs.store.s3.s3_store import S3Store

    bucket, _, prefix = address.partition("/")
    if prefix := prefix.strip("/"):
        check_key(prefix)
    check_bucket(bucket)
    get_client(read_store_settings().s3)
    return S3Store(bucket, prefix)


def _make_error(problem: str) -> InputError:
    return InputError([Fault("store", problem, _URL_REMEDY)])
