"""Models and data of s3:// on this machine: fetched once, whole, bounded, shared by processes.

    <cache>/<name>/files/...     what was fetched
                  /sealed.json   written last: sizes, times and digests
    <cache>/<name>.lock          held while it is fetched, and shared while it is used

The name comes from keys, sizes and etags, so what changes in the bucket is fetched anew.
"""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from jobs.errors import Fault, InputError, StoreError
from jobs.store.digest import sha256_of_file
from jobs.store.keys import check_key
from jobs.store.objects import ObjectStore, open_store
from jobs.store.settings import store_settings

SEALED, FILES = "sealed.json", "files"
MOST_FILES = 10_000

_used = dict[Path, IO[bytes]]()
"""Locks of what this process uses, held to its end: nothing of it is taken away meanwhile."""


@dataclass(frozen=True)
class Wanted:
    """One object to have at hand."""

    key: str
    name: str
    size: int
    etag: str


def cached_folder(url: str, kinds: Sequence[str]) -> Path | None:
    """The objects right under a prefix, of these kinds, as a folder; None where there is none."""
    store = open_store(url)
    wanted = _wanted(store, [key for key in store.list("") if "/" not in key], kinds)
    return _at_hand(store, wanted) / FILES if wanted else None


def cached_files(url: str, kinds: Sequence[str]) -> tuple[Path, ...]:
    """The objects that an s3:// URL means, as files in order: one, a glob, or a prefix."""
    bucket, _, rest = url[len("s3://") :].partition("/")
    store = open_store(f"s3://{bucket}")
    wanted = _wanted(store, keys_meant(store, rest), kinds)
    if not wanted:
        return ()
    folder = _at_hand(store, wanted) / FILES
    return tuple(folder / one.name for one in wanted)


def keys_meant(store: ObjectStore, where: str) -> list[str]:
    """The keys that a key, a glob or a prefix means, in order."""
    fixed = where.split("*")[0].split("?")[0].split("[")[0]
    if fixed != where:
        return [key for key in store.list(fixed) if fnmatch.fnmatchcase(key, where)]
    if where and not where.endswith("/") and store.head(where) is not None:
        return [where]
    prefix = f"{where.rstrip('/')}/" if where else ""
    return [key for key in store.list(prefix) if "/" not in key[len(prefix) :]]


def _wanted(store: ObjectStore, keys: Sequence[str], kinds: Sequence[str]) -> list[Wanted]:
    sound = [key for key in keys if key.lower().endswith(tuple(kinds))]
    if len(sound) > MOST_FILES:
        problem = f"{len(sound)} objects under {store.url('')}"
        raise InputError([Fault("s3://", problem, f"Name at most {MOST_FILES}, in larger files.")])
    flat = len({key.rpartition("/")[2] for key in sound}) == len(sound)
    found = list[Wanted]()
    for key in sound:
        # Whoever writes to a bucket chooses its keys: none of them may lead out of the cache.
        name = check_key(key.rpartition("/")[2] if flat else key)
        if (there := store.head(key)) is not None:
            found.append(Wanted(key, name, there.size, there.etag))
    return found


def _at_hand(store: ObjectStore, wanted: Sequence[Wanted]) -> Path:
    settings = store_settings()
    told = json.dumps([store.url(""), [(one.key, one.size, one.etag) for one in wanted]])
    entry = settings.cache / hashlib.sha256(told.encode()).hexdigest()[:32]
    try:
        settings.cache.mkdir(parents=True, exist_ok=True)
        with entry.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Before the look: whoever makes room waits for it, or we for him.
            _hold(entry)
            if not _whole(entry, wanted):
                _make_room(settings.cache, sum(one.size for one in wanted), settings.cache_bytes)
                _fetch(store, wanted, entry)
            os.utime(entry / SEALED)
    except OSError as error:
        wrong = f"{settings.cache}: {error.strerror or error}"
        raise StoreError(f"{wrong}. Name another folder as SLORA_CACHE.") from error
    return entry


def _hold(entry: Path) -> None:
    if entry in _used:
        return
    held = entry.with_suffix(".use").open("ab")
    fcntl.flock(held, fcntl.LOCK_SH)
    _used[entry] = held


def _whole(entry: Path, wanted: Sequence[Wanted]) -> bool:
    """Whether what was fetched is still as it was. What was touched since is digested again."""
    try:
        sealed = json.loads((entry / SEALED).read_text())
        for one in wanted:
            path, told = entry / FILES / one.name, sealed[one.name]
            status = path.stat()
            if status.st_size != one.size:
                return False
            if status.st_mtime_ns != told["mtime_ns"] and sha256_of_file(path) != told["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _fetch(store: ObjectStore, wanted: Sequence[Wanted], entry: Path) -> None:
    _drop_unfinished(entry)
    beside = entry.with_name(f".{entry.name}-{secrets.token_hex(4)}")
    try:
        sealed = {}
        for one in wanted:
            path = beside / FILES / one.name
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = store.get_file(one.key, path)
            if path.stat().st_size != one.size:
                raise StoreError(f"{store.url(one.key)}: changed while it was fetched. Try again.")
            with path.open("rb") as opened:
                # On the disk before the seal is: a seal over lost bytes would be believed.
                os.fsync(opened.fileno())
                sealed[one.name] = {"sha256": digest, "mtime_ns": path.stat().st_mtime_ns}
        (beside / SEALED).write_text(json.dumps(sealed))
        shutil.rmtree(entry, ignore_errors=True)
        beside.rename(entry)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _make_room(cache: Path, needed: int, most: int) -> None:
    """Take away what was not used for longest, as far as nobody uses it now."""
    if needed > most:
        problem = f"{needed} bytes are more than the cache may hold, {most}"
        raise InputError([Fault("SLORA_CACHE_BYTES", problem, "Raise it.")])
    for lock in cache.glob("*.lock"):
        _give_up(lock)
    entries = [path.parent for path in cache.glob(f"*/{SEALED}")]
    sizes = {entry: _size(entry) for entry in entries}
    total = sum(sizes.values())
    for entry in sorted(entries, key=_last_used):
        if total + needed <= most:
            return
        if _taken_away(entry):
            total -= sizes[entry]
    if total + needed > most:
        problem = f"{total} of {most} bytes are in use, {needed} more are needed"
        raise InputError([Fault("SLORA_CACHE_BYTES", problem, "Raise it, or end other runs.")])


def _give_up(lock: Path) -> None:
    """What a fetch left that was killed, of an entry that nobody fetches now: it counts nowhere."""
    with lock.open("ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        _drop_unfinished(lock.with_suffix(""))


def _drop_unfinished(entry: Path) -> None:
    """With the entry's lock held: then nobody else is at work in it."""
    for beside in entry.parent.glob(f".{entry.name}-*"):
        shutil.rmtree(beside, ignore_errors=True)


def _taken_away(entry: Path) -> bool:
    with entry.with_suffix(".use").open("ab") as use:
        try:
            fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(entry, ignore_errors=True)
        return True


def _size(entry: Path) -> int:
    return sum(path.stat().st_size for path in (entry / FILES).rglob("*") if path.is_file())


def _last_used(entry: Path) -> float:
    try:
        return (entry / SEALED).stat().st_mtime
    except FileNotFoundError:
        return 0.0
