"""A store in a directory: every write goes through a temporary file, so it is whole or absent."""

from __future__ import annotations

import fcntl
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

from jobs.errors import AlreadyThere, Changed, Fault, InputError, NotFound, StoreError
from jobs.store import directory_leftovers
from jobs.store.digest import CHUNK, copy_and_digest
from jobs.store.directory_leftovers import LOCK, PROBE
from jobs.store.keys import HIDDEN, Head, Leftover, check_key

# The class below has methods called `list` and `open`, which hide the builtins in annotations.
Faults = list[Fault]
Leftovers = list[Leftover]

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


@dataclass(frozen=True)
class _Condition:
    """What has to hold for a write to count."""

    key: str
    create_only: bool = False
    if_match: str | None = None


class DirectoryStore:
    """Objects as files under one root. Nothing is made before the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def put(
        self, key: str, data: bytes, *, create_only: bool = False, if_match: str | None = None
    ) -> str:
        """Write; AlreadyThere or Changed when the condition does not hold. Gives the etag."""
        target = self.path(key)
        with self._told(key), self._temporary() as (file, temporary):
            file.write(data)
            condition = _Condition(key, create_only, if_match)
            return self._publish(file, temporary, target, condition)

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> str:
        """Write what lies at `path`, without holding it in memory."""
        target = self.path(key)
        with self._told(key), path.open("rb") as source, self._temporary() as (file, temporary):
            shutil.copyfileobj(source, file, CHUNK)
            return self._publish(file, temporary, target, _Condition(key, create_only))

    def copy(self, source: str, key: str) -> None:
        """Write one object under another key too, or NotFound."""
        # Not a hard link: whoever edits a file of an adapter in place would spoil the blob as well.
        with self.open(source) as opened, self._told(key), self._temporary() as (file, temporary):
            shutil.copyfileobj(opened, file, CHUNK)
            self._publish(file, temporary, self.path(key), _Condition(key))

    def get(self, key: str) -> bytes:
        """The whole object, or NotFound."""
        with self.open(key) as file, self._told(key):
            return file.read()

    def get_file(self, key: str, path: Path) -> str:
        """Write the whole object into the new file `path`, and give its SHA-256."""
        with self.open(key) as source, self._told(key), path.open("xb") as file:
            return copy_and_digest(source, file)

    def read(self, key: str, start: int, length: int | None = None) -> bytes:
        """A part of the object, as much of it as there is, or NotFound."""
        with self.open(key) as file, self._told(key):
            file.seek(start)
            return file.read(-1 if length is None else length)

    def open(self, key: str) -> BinaryIO:
        """The object as a stream to read and close, or NotFound."""
        path = self.path(key)
        try:
            with self._told(key, but=_ABSENT):
                return path.open("rb")
        except _ABSENT as error:
            raise NotFound(key, self._beside(key)) from error

    def head(self, key: str) -> Head | None:
        """The object's size, etag and age; None where there is none."""
        path = self.path(key)
        with self._told(key):
            return _head(path)

    def list(self, prefix: str) -> Iterator[str]:
        """Every key that starts with `prefix`, in order; never a write under way."""
        folder, _, _ = prefix.rpartition("/")
        top = self.path(folder) if folder else self.root
        with self._told(prefix or "."):
            keys = sorted(key for key in self._walk(top) if key.startswith(prefix))
        return iter(keys)

    def delete(self, key: str) -> None:
        """Remove the object; none under the key is no error."""
        path = self.path(key)
        with self._told(key), suppress(FileNotFoundError, NotADirectoryError), self._locked():
            path.unlink()
            _sync_folder(path.parent)

    def leftovers(self) -> Leftovers:
        """Temporary files, and folders of probes."""
        with self._told(HIDDEN):
            return directory_leftovers.leftovers(self.root)

    def discard(self, leftover: Leftover) -> None:
        """Remove a leftover; one that is gone is no error."""
        with self._told(leftover.name):
            directory_leftovers.discard(self.root, leftover)

    def url(self, key: str) -> str:
        """`file://` and the path as it is, of an object or a prefix: what `open_store` reads."""
        return f"file://{self.path(key.rstrip('/')) if key else self.root}"

    def path(self, key: str) -> Path:
        """Where the object lies, for appenders on this machine; InputError outside the root."""
        path = self.root / check_key(key)
        try:
            inside = path.resolve().is_relative_to(self.root)
        except (OSError, RuntimeError):  # 3.11 raises RuntimeError for a loop of links
            inside = False
        if not inside:
            problem = f"{key!r} leads out of the store {self.root} through a link"
            raise InputError([Fault("key", problem, "Remove the link.")])
        return path

    def check_writable(self) -> Faults:
        """What stands between this process and a write, tried for real; leaves nothing behind."""
        # Where the root is missing, its nearest ancestor tells whether it could be made.
        nearest = next(p for p in (self.root, *self.root.parents) if os.path.lexists(p))
        parts = (self.root / part for part in (HIDDEN, "adapters", "runs"))
        for folder in (nearest, *filter(os.path.lexists, parts)):
            try:
                _probe(folder)
            except OSError as error:
                problem = f"{self.root} can't be written: {folder}: {error.strerror or error}"
                remedy = "Name a folder that this user may write to."
                return [Fault("store", problem, remedy)]
        return []

    @contextmanager
    def _temporary(self) -> Iterator[tuple[IO[bytes], Path]]:
        folder = self.root / HIDDEN
        _make_folder(folder)
        path = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
        # Not tempfile: its 0600 would hide a shared store's objects from everybody else.
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
        etag = _etag(temporary)
        if condition.create_only:
            try:
                # A link fails on a taken name, atomically; a rename would take it over.
                os.link(temporary, target)
            except FileExistsError as error:
                raise AlreadyThere(condition.key) from error
        else:
            self._replace(temporary, target, condition)
        _sync_folder(target.parent)
        return etag

    def _replace(self, temporary: Path, target: Path, condition: _Condition) -> None:
        # Every replacing write takes the lock: one that came between a look and a swap would be
        # lost without a word.
        with self._locked():
            if condition.if_match is not None:
                there = _head(target)
                if there is None or there.etag != condition.if_match:
                    raise Changed(condition.key)
            temporary.replace(target)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        _make_folder(self.root / HIDDEN)
        with (self.root / HIDDEN / LOCK).open("ab") as lock:
            # Let go by the system when the process dies, so no death locks a store.
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _walk(self, top: Path) -> Iterator[str]:
        start = len(str(self.root)) + 1
        for folder, folders, files in os.walk(top, onerror=_raise_unless_gone):
            if len(folder) < start:
                folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
            for name in files:
                key = f"{folder}/{name}"[start:]
                if _listed(self, key):
                    yield key

    def _beside(self, key: str) -> tuple[str, ...]:
        with suppress(StoreError):
            return tuple(self.list(key.rpartition("/")[0] + "/"))[:8] if "/" in key else ()
        return ()

    @contextmanager
    def _told(self, key: str, but: tuple[type[OSError], ...] = ()) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, but):
                raise
            wrong = f"{self.root}: {key}: {error.strerror or error}"
            raise StoreError(f"{wrong}. Check the folder's owner and the space left.") from error


def _head(path: Path) -> Head | None:
    try:
        status = path.stat()
    except _ABSENT:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return Head(size=status.st_size, etag=_etag(path), modified=status.st_mtime)


def _etag(path: Path) -> str:
    """By content where that is cheap: pointers are swapped by it. By place and time elsewhere."""
    status = path.stat()
    if status.st_size <= CHUNK:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _listed(store: DirectoryStore, key: str) -> bool:
    """Whether a name that was found is an object: its key is sound, and no link leads outside.

    Raises OSError where that can't be told now: `gc` would take what a list leaves out for gone.
    """
    path = f"{store.root}/{key}"
    try:
        check_key(key)
        if os.path.islink(path):
            return os.path.isfile(path) and bool(store.path(key))
        return stat.S_ISREG(os.stat(path).st_mode)
    except (InputError, *_ABSENT):
        return False


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make a name durable: without it a crash may forget the file that was just renamed."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _probe(folder: Path) -> None:
    """Write, read back, link and remove, as `put` does."""
    written = secrets.token_bytes(32)
    with tempfile.TemporaryDirectory(prefix=PROBE, dir=folder) as place:
        first, second = Path(place, "first"), Path(place, "second")
        with first.open("xb") as file:
            file.write(written)
            file.flush()
            os.fsync(file.fileno())
        os.link(first, second)
        if second.read_bytes() != written:
            raise OSError(f"{folder} gives back other bytes than were written")


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
