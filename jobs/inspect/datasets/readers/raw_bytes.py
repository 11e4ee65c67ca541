"""The bytes of a file: decompressed, metered for a digest, and recognised by their first bytes."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.errors import ReadLimitExceeded
from jobs.inspect.datasets.data_row import ChunkHandler
from jobs.places.boundary import open_checked
from jobs.store.head_copies import is_partial

BUFFER_BYTES = 2**20
SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"PAR1", "parquet"),
    (b"ARROW1", "arrow"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"%PDF", "a PDF"),
    (b"version https://git-lfs", "a Git LFS pointer"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "XML"),
)
"""First bytes of kinds of files. Text is compared in lower case."""


def _find_zstd() -> Callable[..., Any] | None:
    """Return the function that opens zstd files, if this Python has one."""
    for module, function in (("compression.zstd", "open"), ("zstandard", "open")):
        try:
            opener: Callable[..., Any] = getattr(importlib.import_module(module), function)
        except ImportError:
            continue
        return opener
    return None


OPENERS: dict[str, Callable[..., Any] | None] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _find_zstd(),
}
"""Functions that open a compressed file for reading; None if this Python can't."""


def split_suffix(path: Path) -> tuple[str, str]:
    """Return the suffix of the kind of file and that of its compression, or empty ones."""
    name = path.name.lower()
    compression = next((suffix for suffix in OPENERS if name.endswith(suffix)), "")
    return Path(name.removesuffix(compression)).suffix, compression


def detect_signature(head: bytes) -> str | None:
    """Return the kind of file that begins with these bytes, if it can be told from them."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64]
    for signature, kind in SIGNATURES:
        if head.startswith(signature) or start.lower().startswith(signature):
            return kind
    return None


def read_head(path: Path, size: int, *, compression: str = "") -> bytes:
    """Return the first bytes of a file, decompressed."""
    with open_bytes(path, compression, None) as raw:
        return raw.read(size)


@contextmanager
def open_bytes(
    path: Path,
    compression: str,
    on_chunk: ChunkHandler | None,
    on_unpacked: ChunkHandler | None = None,
) -> Iterator[io.BufferedReader[Any]]:
    """Open a file for reading.

    `on_chunk` receives its raw bytes, before they are decompressed, and `on_unpacked` what they are
    decompressed to.
    """
    with (
        open_checked(path) as opened,
        _MeteredFile(_open_raw(path, opened), on_chunk) as metered_raw,
        io.BufferedReader(metered_raw, BUFFER_BYTES) as raw,
    ):
        opener = OPENERS.get(compression)
        if opener is None:
            yield raw
            return
        # Closing a decompressing file does not close the file below it.
        with opener(raw, "rb") as unpacked:
            metered = _MeteredFile(unpacked, on_unpacked)
            with io.BufferedReader(metered, BUFFER_BYTES) as buffered:
                yield buffered


def _open_raw(path: Path, opened: str) -> io.FileIO:
    return _PartialFile(opened) if is_partial(path) else io.FileIO(opened)


class _MeteredFile(io.RawIOBase):
    """A file that passes its bytes to `on_chunk` as they are read."""

    def __init__(self, file: Any, on_chunk: ChunkHandler | None) -> None:
        self._file, self._on_chunk = file, on_chunk

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._file.readinto(buffer)
        if self._on_chunk is not None:
            self._on_chunk(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _PartialFile(io.FileIO):
    """The start of an object, whose end must not be taken for that of the object."""

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        if not count:
            problem = f"only the first {self.tell():,} bytes of {Path(str(self.name)).name}"
            raise ReadLimitExceeded(f"{problem} were read, and they do not suffice")
        return count
