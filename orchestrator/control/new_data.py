"""Detect new data from names, sizes and versions of files, without reading a row.

The service computes it in a process with limits: see `orchestrator.control.looking`. A changed
fingerprint starts a retraining, which compares the digest of the rows with that of the
current adapter, and ends if they are equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from jobs.errors import Fault, InputError, NotInStore
from jobs.inspect.datasets.file_selection import expand_glob, walk_folder
from jobs.places.boundary import check_address
from jobs.spec.address_types import AddressKind
from jobs.store.adapters.listing import READER_THREADS
from jobs.store.cache import MAX_FILES, match_keys
from jobs.store.open import open_store

S3_PREFIX = "s3://"


def compute_data_fingerprint(location: str) -> str | None:
    """Compute a digest of the files at a location; None if there are none, or it is on a hub.

    The location is data.train of a spec: a file, a glob, a folder, or s3:// with a key or prefix.
    Raise InputError, also if it is outside the places of this thread, or StoreError.
    """
    check_address("data.train", location, AddressKind.DATA)
    entries = list(
        _list_bucket_files(location)
        if location.startswith(S3_PREFIX)
        else _list_local_files(location)
    )
    if not entries:
        return None
    return sha256("\n".join(entries).encode()).hexdigest()


def _list_local_files(location: str) -> Iterator[str]:
    path = Path(location.removeprefix("file://"))
    if path.is_file():
        yield from _describe_file(path)
        return
    # As the reader of rows finds them.
    files = walk_folder(path) if path.is_dir() else expand_glob(str(path))
    for count, file in enumerate(files):
        if count == MAX_FILES:
            problem = f"there are more than {MAX_FILES} files under {location}"
            raise InputError([Fault("data.train", problem, "Use fewer, larger files.")])
        yield from _describe_file(file)


def _describe_file(path: Path) -> Iterator[str]:
    try:
        info = path.stat()
    except OSError:
        return  # deleted since it was listed
    yield f"{path}\t{info.st_size}\t{info.st_mtime_ns}"


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
