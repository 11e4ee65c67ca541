"""An object store in a directory. Writes go through a temporary file: complete or absent."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from jobs.errors import AlreadyExists, Fault, InputError, NotInStore, StoreError, WriteConflict
from jobs.store import local_leftovers
from jobs.store.base import Leftover, Leftovers, ObjectInfo
from jobs.store.digest import CHUNK, copy_and_digest
from jobs.store.file_lock import take_lock
from jobs.store.keys import HIDDEN_PREFIX, check_key
from jobs.store.local_leftovers import LOCK_NAME, PROBE_PREFIX

LOCK_TIMEOUT_S = 120.0
"""Seconds to wait for another write; each holds the lock for milliseconds."""
_ABSENT_ERRORS = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


@dataclass(frozen=True)
class _Condition:
    """The precondition of a write."""

    key: str
    create_only: bool = False
    if_match: str | None = None


class DirectoryStore:
    """Objects as files under one root folder, which the first write creates."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def put(
        self, key: str, data: bytes, *, create_only: bool = False, if_match: str | None = None
    ) -> str:
        """Write an object. Raise AlreadyExists or WriteConflict if the condition fails."""
        target = self.local_path(key)
        with self._translate_errors(key), self._open_temporary() as (file, temporary):
            file.write(data)
            condition = _Condition(key, create_only, if_match)
            return self._publish(file, temporary, target, condition)

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> str:
        """Write the file at `path` without holding it in memory."""
        target = self.local_path(key)
        with (
            self._translate_errors(key),
            path.open("rb") as source,
            self._open_temporary() as (file, temporary),
        ):
            shutil.copyfileobj(source, file, CHUNK)
            return self._publish(file, temporary, target, _Condition(key, create_only))

    def copy(self, source: str, key: str) -> None:
        """Copy an object. Raise NotInStore if it is absent."""
        # Not a hard link: editing a file of an adapter in place would corrupt the blob as well.
        with (
            self.open(source) as source_file,
            self._translate_errors(key),
            self._open_temporary() as (file, temporary),
        ):
            shutil.copyfileobj(source_file, file, CHUNK)
            self._publish(file, temporary, self.local_path(key), _Condition(key))

    def get(self, key: str) -> bytes:
        """Return the bytes of an object. Raise NotInStore if it is absent."""
        with self.open(key) as file, self._translate_errors(key):
            return file.read()

    def get_file(self, key: str, path: Path) -> str:
        """Write an object into the new file `path`, and return its SHA-256."""
        with self.open(key) as source, self._translate_errors(key), path.open("xb") as file:
            return copy_and_digest(source, file)

    def read(self, key: str, start: int, length: int | None = None) -> bytes:
        """Return a range of an object, cut at its end. Raise NotInStore if it is absent."""
        with self.open(key) as file, self._translate_errors(key):
            file.seek(start)
            return file.read(-1 if length is None else length)

    def open(self, key: str) -> BinaryIO:
        """Open an object as a stream. Raise NotInStore if it is absent."""
        path = self.local_path(key)
        try:
            with self._translate_errors(key, allowed=_ABSENT_ERRORS):
                return path.open("rb")
        except _ABSENT_ERRORS as error:
            raise NotInStore(key, self._list_siblings(key)) from error

    def head(self, key: str) -> ObjectInfo | None:
        """Return size, etag and time of an object, or None if it is absent."""
        path = self.local_path(key)
        with self._translate_errors(key):
            return _read_info(path)

    def measure_age(self, key: str) -> float | None:
        """Return the seconds since an object was written, by the clock of the file system."""
        path = self.local_path(key)
        with self._translate_errors(key):
            try:
                written_at = path.stat().st_mtime
            except _ABSENT_ERRORS:
                return None
            # A new file has the server's time, which on a network file system is not ours.
            with self._open_temporary() as (file, _):
                return max(0.0, os.fstat(file.fileno()).st_mtime - written_at)

    def list(self, prefix: str) -> Iterator[str]:
        """Return all keys that start with `prefix`, in order, without unfinished writes."""
        folder, _, _ = prefix.rpartition("/")
        top = self.local_path(folder) if folder else self.root
        with self._translate_errors(prefix or "."):
            keys = sorted(key for key in self._walk_keys(top) if key.startswith(prefix))
        return iter(keys)

    def delete(self, key: str) -> None:
        """Delete an object. An absent object is no error."""
        path = self.local_path(key)
        with (
            self._translate_errors(key),
            suppress(FileNotFoundError, NotADirectoryError),
            self._lock_writes(),
        ):
            path.unlink()
            _sync_folder(path.parent)

    def list_leftovers(self) -> Leftovers:
        """Return temporary files and folders of probes."""
        with self._translate_errors(HIDDEN_PREFIX):
            return local_leftovers.list_leftovers(self.root)

    def discard(self, leftover: Leftover) -> None:
        """Remove a leftover. An absent one is no error."""
        with self._translate_errors(leftover.name):
            local_leftovers.discard_leftover(self.root, leftover)

    def url(self, key: str) -> str:
        """Return `file://` and the unescaped path, as `open_store` reads it."""
        return f"file://{self.local_path(key.rstrip('/')) if key else self.root}"

    def local_path(self, key: str) -> Path:
        """Return the path of an object. Raise InputError if a link leads out of the root."""
        path = self.root / check_key(key)
        try:
            is_inside = path.resolve().is_relative_to(self.root)
        except (OSError, RuntimeError):  # 3.11 raises RuntimeError for a loop of links
            is_inside = False
        if not is_inside:
            problem = f"{key!r} leaves the store {self.root} through a link"
            raise InputError([Fault("key", problem, "Remove the link.")])
        return path

    def check_writable(self) -> str | None:
        """Write, read back and delete test data. Return why a write would fail, or None."""
        # Without a root folder, the nearest ancestor shows whether it can be created.
        nearest = next(path for path in (self.root, *self.root.parents) if os.path.lexists(path))
        parts = (self.root / part for part in (HIDDEN_PREFIX, "adapters", "runs"))
        for folder in (nearest, *filter(os.path.lexists, parts)):
            try:
                _probe_folder(folder)
            except OSError as error:
                return f"{self.root} cannot be written: {folder}: {error.strerror or error}"
        return None

    @contextmanager
    def _open_temporary(self) -> Iterator[tuple[IO[bytes], Path]]:
        folder = self.root / HIDDEN_PREFIX
        _make_folder(folder)
        path = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
        # Not tempfile: its mode 0600 would hide the objects of a shared store from other users.
        with path.open("xb") as file:
            try:
                yield file, path
            finally:
                path.unlink(missing_ok=True)

    def _publish(
        self, file: IO[bytes], temporary: Path, target: Path, condition: _Condition
    ) -> str:
        file.flush()
        os.fsync(file.fileno())
        _make_folder(target.parent)
        etag = _compute_etag(temporary)
        if condition.create_only:
            try:
                # A link fails atomically on an existing name; a rename would replace it.
                os.link(temporary, target)
            except FileExistsError as error:
                raise AlreadyExists(condition.key) from error
        else:
            self._replace_object(temporary, target, condition)
        _sync_folder(target.parent)
        return etag

    def _replace_object(self, temporary: Path, target: Path, condition: _Condition) -> None:
        # Every replacing write takes the lock: a write between the comparison and the swap of
        # another one would be lost silently.
        with self._lock_writes():
            if condition.if_match is not None:
                existing = _read_info(target)
                if existing is None or existing.etag != condition.if_match:
                    raise WriteConflict(condition.key)
            temporary.replace(target)

    @contextmanager
    def _lock_writes(self) -> Iterator[None]:
        _make_folder(self.root / HIDDEN_PREFIX)
        with (self.root / HIDDEN_PREFIX / LOCK_NAME).open("ab") as lock:
            # The system releases it when the process dies, so no dead process locks a store.
            take_lock(lock, purpose="it replaces an object", timeout_s=LOCK_TIMEOUT_S)
            yield

    def _walk_keys(self, top: Path) -> Iterator[str]:
        start = len(str(self.root)) + 1
        for folder, folders, files in os.walk(top, onerror=_raise_unless_absent):
            if len(folder) < start:
                folders[:] = [name for name in folders if not name.startswith(HIDDEN_PREFIX)]
            for name in files:
                key = f"{folder}/{name}"[start:]
                if _is_object(self, key):
                    yield key

    def _list_siblings(self, key: str) -> tuple[str, ...]:
        with suppress(StoreError):
            return tuple(self.list(key.rpartition("/")[0] + "/"))[:8] if "/" in key else ()
        return ()

    @contextmanager
    def _translate_errors(
        self, key: str, allowed: tuple[type[OSError], ...] = ()
    ) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, allowed):
                raise
            problem = f"{self.root}: {key}: {error.strerror or error}"
            raise StoreError(
                f"{problem}. Check the owner of the folder and the free space."
            ) from error


def _read_info(path: Path) -> ObjectInfo | None:
    try:
        status = path.stat()
    except _ABSENT_ERRORS:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return ObjectInfo(size=status.st_size, etag=_compute_etag(path), modified=status.st_mtime)


def _compute_etag(path: Path) -> str:
    """Return a digest of a small file (pointers are swapped by it), else inode, time and size."""
    status = path.stat()
    if status.st_size <= CHUNK:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _is_object(store: DirectoryStore, key: str) -> bool:
    """Return whether a name is an object: its key is valid, and no link leads outside.

    Raise OSError if that is unknown now: `gc` treats what a list omits as absent.
    """
    path = f"{store.root}/{key}"
    try:
        check_key(key)
        if os.path.islink(path):
            return os.path.isfile(path) and bool(store.local_path(key))
        return stat.S_ISREG(os.stat(path).st_mode)
    except (InputError, *_ABSENT_ERRORS):
        return False


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make a name durable: without this, a crash may lose the file that was just renamed."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _probe_folder(folder: Path) -> None:
    """Write, read back, link and remove a file, as `put` does."""
    data = secrets.token_bytes(32)
    with tempfile.TemporaryDirectory(prefix=PROBE_PREFIX, dir=folder) as temporary:
        first, second = Path(temporary, "first"), Path(temporary, "second")
        with first.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(first, second)
        if second.read_bytes() != data:
            raise OSError(f"{folder} returns other bytes than were written")


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
