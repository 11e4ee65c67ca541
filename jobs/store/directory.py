"""A store in a directory: every write goes through a temporary file, so it is whole or absent."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from jobs.errors import AlreadyThere, Fault, InputError, NotFound, StoreError
from jobs.store.keys import HIDDEN, Head, check_key

# The class below has methods called `list` and `open`, which hide the builtins in annotations.
Faults = list[Fault]

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class DirectoryStore:
    """Objects as files under one root. Nothing is made before the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Write; with `create_only`, AlreadyThere when the key is taken."""
        target = self.path(key)
        with self._told(key), self._temporary() as (file, temporary):
            file.write(data)
            self._publish(file, temporary, target, key if create_only else None)

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> None:
        """Write what lies at `path`, without holding it in memory."""
        target = self.path(key)
        with self._told(key), path.open("rb") as source, self._temporary() as (file, temporary):
            shutil.copyfileobj(source, file, 1 << 20)
            self._publish(file, temporary, target, key if create_only else None)

    def get(self, key: str) -> bytes:
        """The whole object, or NotFound."""
        with self.open(key) as file, self._told(key):
            return file.read()

    def open(self, key: str) -> BinaryIO:
        """The object as a stream to read and close, or NotFound."""
        path = self.path(key)
        try:
            with self._told(key, but=_ABSENT):
                return path.open("rb")
        except _ABSENT as error:
            raise NotFound(key, self._beside(key)) from error

    def head(self, key: str) -> Head | None:
        """The object's size; None where there is none."""
        path = self.path(key)
        with self._told(key):
            return Head(size=path.stat().st_size) if path.is_file() else None

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
        with self._told(key), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
            _sync_folder(path.parent)

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
        self, file: IO[bytes], temporary: Path, target: Path, create_only: str | None
    ) -> None:
        file.flush()
        os.fsync(file.fileno())
        _make_folder(target.parent)
        if create_only is None:
            temporary.replace(target)
        else:
            try:
                # A link fails on a taken name, atomically; a rename would take it over.
                os.link(temporary, target)
            except FileExistsError as error:
                raise AlreadyThere(create_only) from error
        _sync_folder(target.parent)

    def _walk(self, top: Path) -> Iterator[str]:
        for folder, folders, files in os.walk(top, onerror=_raise_unless_gone):
            at = Path(folder)
            if at == self.root:
                folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
            for name in files:
                key = (at / name).relative_to(self.root).as_posix()
                with suppress(InputError):
                    if self.path(key).is_file():
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
    with tempfile.TemporaryDirectory(prefix=f"{HIDDEN}-probe-", dir=folder) as place:
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
