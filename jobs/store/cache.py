"""Cache models and data of s3:// on this machine, bounded and shared by processes.

    <cache>/<name>/files/...     the fetched objects
                  /sealed.json   times and digests, written last
    <cache>/<name>.lock          locked during a fetch
    <cache>/<name>.use           locked in shared mode by every process that uses the entry

The name is a digest of keys, sizes and etags, so an object that changes is fetched again.
"""

from __future__ import annotations

import atexit
import fcntl
import fnmatch
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from jobs.errors import Fault, InputError, StoreError
from jobs.file_errors import FULL
from jobs.store.base import ObjectStore
from jobs.store.cache_item import CacheItem
from jobs.store.digest import compute_file_sha256
from jobs.store.file_lock import take_lock
from jobs.store.head_copies import copy_data_heads, copy_model_heads
from jobs.store.keys import check_key
from jobs.store.open import open_store
from jobs.store.settings import read_store_settings

SEALED, FILES = "sealed.json", "files"
MAX_FILES = 10_000
FETCH_TIMEOUT_S, EVICTION_TIMEOUT_S = 4 * 3600.0, 600.0
"""Seconds that a process waits while another one fetches or removes the same entry."""

_held_locks = dict[Path, IO[bytes]]()
"""Shared locks of the entries that this process uses. They are held until it ends, because paths
into an entry are passed on freely: no other process evicts it meanwhile."""


def fetch_folder(url: str, suffixes: Sequence[str]) -> Path | None:
    """Fetch the objects directly under a prefix as a folder. Return None if none matches."""
    store = open_store(url)
    items = _list_items(store, [key for key in store.list("") if "/" not in key], suffixes)
    if not items:
        return None
    if (limit := read_store_settings().head_bytes) is not None:
        return copy_model_heads(store, items, limit)
    return _ensure_cached(store, items) / FILES


def fetch_files(url: str, suffixes: Sequence[str]) -> tuple[Path, ...]:
    """Fetch the objects of an s3:// URL (a key, a glob or a prefix) as files, in order."""
    bucket, _, pattern = url[len("s3://") :].partition("/")
    store = open_store(f"s3://{bucket}")
    items = _list_items(store, match_keys(store, pattern), suffixes)
    if not items:
        return ()
    limit = read_store_settings().head_bytes
    if limit is not None:
        folder = copy_data_heads(store, items, limit)
    else:
        folder = _ensure_cached(store, items) / FILES
    return tuple(folder / item.name for item in items)


def match_keys(store: ObjectStore, pattern: str) -> list[str]:
    """Return the keys that match a key, a glob or a prefix, in order: those in the prefix's folders
    too, but not what is hidden there.
    """
    fixed_part = pattern.split("*")[0].split("?")[0].split("[")[0]
    if fixed_part != pattern:
        return [key for key in store.list(fixed_part) if fnmatch.fnmatchcase(key, pattern)]
    if pattern and not pattern.endswith("/") and store.head(pattern) is not None:
        return [pattern]
    prefix = f"{pattern.rstrip('/')}/" if pattern else ""
    return [
        key
        for key in store.list(prefix)
        if not any(part.startswith((".", "_")) for part in key[len(prefix) :].split("/"))
    ]


def _list_items(
    store: ObjectStore, keys: Sequence[str], suffixes: Sequence[str]
) -> list[CacheItem]:
    matching = [key for key in keys if key.lower().endswith(tuple(suffixes))]
    if len(matching) > MAX_FILES:
        problem = f"{len(matching)} objects match under {store.url('')}, the limit is {MAX_FILES}"
        raise InputError([Fault("s3://", problem, "Use fewer, larger files.")])
    # Names of folders may tell splits.
    is_flat = len({key.rpartition("/")[0] for key in matching}) == 1
    items = list[CacheItem]()
    for key in matching:
        # Other writers choose the keys of a bucket: none of them may lead out of the cache.
        name = check_key(key.rpartition("/")[2] if is_flat else key)
        if (info := store.head(key)) is not None:
            items.append(CacheItem(key, name, info.size, info.etag))
    return items


def _ensure_cached(store: ObjectStore, items: Sequence[CacheItem]) -> Path:
    settings = read_store_settings()
    identity = json.dumps([store.url(""), [(item.key, item.size, item.etag) for item in items]])
    entry = settings.cache / hashlib.sha256(identity.encode()).hexdigest()[:32]
    try:
        settings.cache.mkdir(parents=True, exist_ok=True)
        with entry.with_suffix(".lock").open("ab") as lock:
            purpose = f"it copies {store.url('')} to this machine"
            take_lock(lock, purpose=purpose, timeout_s=FETCH_TIMEOUT_S)
            # Before the check: an eviction waits for this lock, or this process for the eviction.
            _hold_entry(entry)
            if not _is_intact(entry, items):
                _make_room(settings.cache, sum(item.size for item in items), settings.cache_bytes)
                _fetch_entry(store, items, entry)
            os.utime(entry / SEALED)
    except OSError as error:
        problem = f"{settings.cache} can't hold the copy of {store.url('')}: "
        problem += error.strerror or str(error)
        remedy = "Set SLORA_CACHE to a folder with space that you may write to."
        if error.errno in FULL:
            raise StoreError(f"{problem}. {remedy}") from error
        raise InputError([Fault("SLORA_CACHE", problem, remedy)]) from error
    return entry


def _hold_entry(entry: Path) -> None:
    if entry in _held_locks:
        return
    lock = entry.with_suffix(".use").open("ab")
    purpose = f"it removes {entry} from the cache"
    take_lock(lock, purpose=purpose, timeout_s=EVICTION_TIMEOUT_S, shared=True)
    _held_locks[entry] = lock
    # Released by the system at any death; closed here, an ordered end prints no warning.
    atexit.register(lock.close)


def _is_intact(entry: Path, items: Sequence[CacheItem]) -> bool:
    """Return whether the files are unchanged. A file with another time is digested again."""
    try:
        sealed = json.loads((entry / SEALED).read_text())
        for item in items:
            path, record = entry / FILES / item.name, sealed[item.name]
            status = path.stat()
            if status.st_size != item.size:
                return False
            if (
                status.st_mtime_ns != record["mtime_ns"]
                and compute_file_sha256(path) != record["sha256"]
            ):
                return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _fetch_entry(store: ObjectStore, items: Sequence[CacheItem], entry: Path) -> None:
    _drop_unfinished(entry)
    temporary = entry.with_name(f".{entry.name}-{secrets.token_hex(4)}")
    try:
        sealed = {}
        for item in items:
            path = temporary / FILES / item.name
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = store.get_file(item.key, path)
            if path.stat().st_size != item.size:
                problem = f"{store.url(item.key)}: the object changed during the download"
                raise StoreError(f"{problem}. Try again.")
            with path.open("rb") as file:
                # Synced before the seal: a seal over lost bytes would be trusted.
                os.fsync(file.fileno())
                sealed[item.name] = {"sha256": digest, "mtime_ns": path.stat().st_mtime_ns}
        (temporary / SEALED).write_text(json.dumps(sealed))
        shutil.rmtree(entry, ignore_errors=True)
        temporary.rename(entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_room(cache: Path, needed_bytes: int, limit_bytes: int) -> None:
    """Evict the least recently used entries that no process uses, until the new one fits."""
    if needed_bytes > limit_bytes:
        problem = f"{needed_bytes} bytes exceed the limit of the cache, {limit_bytes}"
        raise InputError([Fault("SLORA_CACHE_BYTES", problem, "Increase the limit.")])
    for lock in cache.glob("*.lock"):
        _drop_abandoned(lock)
    entries = [path.parent for path in cache.glob(f"*/{SEALED}")]
    sizes = {entry: _measure_size(entry) for entry in entries}
    total = sum(sizes.values())
    for entry in sorted(entries, key=_get_last_use):
        if total + needed_bytes <= limit_bytes:
            return
        if _try_evict(entry):
            total -= sizes[entry]
    if total + needed_bytes > limit_bytes:
        problem = f"{total} of {limit_bytes} bytes are in use, {needed_bytes} more are needed"
        remedy = "Increase the limit, or stop other runs."
        raise InputError([Fault("SLORA_CACHE_BYTES", problem, remedy)])


def _drop_abandoned(lock_path: Path) -> None:
    """Remove the debris of a killed fetch, unless another process fetches the entry now."""
    with lock_path.open("ab") as lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        _drop_unfinished(lock_path.with_suffix(""))


def _drop_unfinished(entry: Path) -> None:
    """Remove unfinished downloads of an entry. The caller holds its lock."""
    for temporary in entry.parent.glob(f".{entry.name}-*"):
        shutil.rmtree(temporary, ignore_errors=True)


def _try_evict(entry: Path) -> bool:
    with entry.with_suffix(".use").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(entry, ignore_errors=True)
        return True


def _measure_size(entry: Path) -> int:
    return sum(path.stat().st_size for path in (entry / FILES).rglob("*") if path.is_file())


def _get_last_use(entry: Path) -> float:
    try:
        return (entry / SEALED).stat().st_mtime
    except FileNotFoundError:
        return 0.0
