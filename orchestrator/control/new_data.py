"""Detect new data from names, sizes and versions of files, without reading a row.

A changed fingerprint starts a retraining, which compares the digest of the rows with that of the
current adapter, and ends if they are equal.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

from jobs.errors import NotInStore
from jobs.store.adapters.listing import READER_THREADS
from jobs.store.cache import match_keys
from jobs.store.open import open_store

S3_PREFIX = "s3://"


def compute_data_fingerprint(location: str) -> str | None:
    """Compute a digest of the files at a location; None if there are none, or it is on a hub.

    The location is data.train of a spec: a file, a glob, a folder, or s3:// with a key or prefix.
    Raise InputError or StoreError.
    """
    entries = list(
        _list_bucket_files(location)
        if location.startswith(S3_PREFIX)
        else _list_local_files(location)
    )
    if not entries:
        return None
    return sha256("\n".join(entries).encode()).hexdigest()


def _list_local_files(location: str) -> Iterator[str]:
    path = location.removeprefix("file://")
    if os.path.isdir(path):
        # Not recursive, as for the reader of rows: a folder must not stand for a whole disk.
        path = os.path.join(glob.escape(path), "*")
    elif os.path.exists(path):
        path = glob.escape(path)
    for name in sorted(glob.glob(path)):
        yield from _describe_file(name)


def _describe_file(name: str) -> Iterator[str]:
    try:
        info = os.stat(name)
    except OSError:
        return  # deleted since it was listed
    if not stat.S_ISDIR(info.st_mode):
        yield f"{name}\t{info.st_size}\t{info.st_mtime_ns}"


def _list_bucket_files(location: str) -> Iterator[str]:
    bucket, _, rest = location.removeprefix(S3_PREFIX).partition("/")
    store = open_store(f"{S3_PREFIX}{bucket}")

    def describe_object(key: str) -> str:
        try:
            head = store.head(key)
        except NotInStore:
            head = None
        return key if head is None else f"{key}\t{head.size}\t{head.etag}"

    with ThreadPoolExecutor(READER_THREADS) as pool:
        yield from pool.map(describe_object, match_keys(store, rest))
