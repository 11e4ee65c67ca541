"""Whether there is new data, from names, sizes and versions alone: no row is read.

A mark that changed is a reason to look; the retraining itself compares the rows' digest with the
current adapter's, and ends where they are the same.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

from jobs.errors import NotFound
from jobs.store.cache import keys_meant
from jobs.store.listing import READERS
from jobs.store.objects import open_store

S3 = "s3://"


def mark_of(where: str) -> str | None:
    """A digest of what lies there now; None where there is nothing, or it is a hub's.

    `where` as data.train of a spec: a file, a glob, a folder, or s3:// with a key or a prefix.
    Raises InputError, StoreError.
    """
    found = list(_in_bucket(where) if where.startswith(S3) else _here(where))
    if not found:
        return None
    return sha256("\n".join(found).encode()).hexdigest()


def _here(where: str) -> Iterator[str]:
    path = where.removeprefix("file://")
    if os.path.isdir(path):
        # Right there, as for who reads the rows: whoever may name a folder names no whole disk.
        path = os.path.join(glob.escape(path), "*")
    elif os.path.exists(path):
        path = glob.escape(path)
    for name in sorted(glob.glob(path)):
        yield from _file(name)


def _file(name: str) -> Iterator[str]:
    try:
        about = os.stat(name)
    except OSError:
        return  # removed since it was listed
    if not stat.S_ISDIR(about.st_mode):
        yield f"{name}\t{about.st_size}\t{about.st_mtime_ns}"


def _in_bucket(where: str) -> Iterator[str]:
    bucket, _, rest = where.removeprefix(S3).partition("/")
    store = open_store(f"{S3}{bucket}")

    def told(found: str) -> str:
        try:
            head = store.head(found)
        except NotFound:
            head = None
        return found if head is None else f"{found}\t{head.size}\t{head.etag}"

    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(told, keys_meant(store, rest))
