"""Stream the rows of a file of any supported kind, and describe it."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

from jobs.errors import Fault
from jobs.inspect.datasets.data_row import COPY_AGAIN, ChunkHandler, FaultHandler, Row, raise_fault
from jobs.inspect.datasets.readers.arrow_rows import read_arrow, read_parquet
from jobs.inspect.datasets.readers.json_rows import read_json
from jobs.inspect.datasets.readers.raw_bytes import (
    OPENERS,
    detect_signature,
    open_bytes,
    read_head,
    split_suffix,
)
from jobs.inspect.datasets.readers.table_rows import detect_layout, read_table, read_text
from jobs.inspect.datasets.readers.text_lines import (
    ENCODING_BYTES,
    ENCODING_NAMES,
    detect_encoding,
    detect_table_encoding,
)

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".csv", ".tsv")
ARROW_SUFFIXES = {".parquet": read_parquet, ".arrow": read_arrow, ".feather": read_arrow}
READABLE_SUFFIXES = (*JSON_SUFFIXES, *TABLE_SUFFIXES, ".txt", *ARROW_SUFFIXES)
DATA_FILES = (
    *READABLE_SUFFIXES,
    *(
        f"{suffix}{compression}"
        for suffix in READABLE_SUFFIXES
        if suffix not in ARROW_SUFFIXES
        for compression in OPENERS
    ),
)
"""Ends of the names of supported files."""
SUPPORTED = (
    f"Supported: {', '.join(READABLE_SUFFIXES)}; those of text also with "
    f"{', '.join(OPENERS)} behind."
)
OTHER_SUFFIXES = {"parquet": ".parquet", "arrow": ".arrow", "gzip": ".gz", "bzip2": ".bz2",
                  "xz": ".xz", "zstd": ".zst"}  # fmt: skip
"""The suffix of files that are told by their first bytes."""


def read_rows(
    path: Path,
    *,
    on_fault: FaultHandler | None = None,
    on_chunk: ChunkHandler | None = None,
    on_unpacked: ChunkHandler | None = None,
) -> Iterator[Row]:
    """Stream the rows of one file. A bad row is reported (by default raised) and skipped.

    `on_chunk` receives the raw bytes of the file, all of them if the file is sound and read to its
    end; `on_unpacked` those of a compressed file once they are decompressed.
    """
    report = on_fault or raise_fault
    suffix, compression = split_suffix(path)
    try:
        if fault := _find_kind_fault(path, suffix, compression):
            report(fault)
        elif suffix in ARROW_SUFFIXES:
            yield from ARROW_SUFFIXES[suffix](path, report, on_chunk)
        else:
            yield from _read_text_file(path, suffix, compression, report, on_chunk, on_unpacked)
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        report(_make_compression_fault(path, compression, error))
    except OSError as error:
        if error.errno is None and compression:
            report(_make_compression_fault(path, compression, error))
            return
        reason = error.strerror or error
        report(Fault(str(path), f"can't be read: {reason}", "Check that it is readable."))


def describe_file(path: Path) -> str:
    """Return the kind of a file in a few words: suffix, compression, separator and encoding."""
    suffix, compression = split_suffix(path)
    kind = f"{suffix}{compression}".removeprefix(".")
    if suffix not in (*TABLE_SUFFIXES, ".txt"):
        return kind
    try:
        head = read_head(path, ENCODING_BYTES, compression=compression)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return kind
    encoding = detect_table_encoding(head)
    parts = [kind]
    if suffix in TABLE_SUFFIXES:
        separator = detect_layout(head, suffix, encoding=encoding).separator
        if separator != ("\t" if suffix == ".tsv" else ","):
            parts.append(f"separated by {'tabs' if separator == chr(9) else repr(separator)}")
    if not encoding.startswith("utf-8"):
        parts.append(ENCODING_NAMES.get(encoding, encoding.upper()))
    return ", ".join(parts)


def is_table(path: Path) -> bool:
    """Return whether the name is that of a table in text, whose cells have no types."""
    return split_suffix(path)[0] in TABLE_SUFFIXES


def is_data_file(path: Path) -> bool:
    """Return whether the name is that of a kind of file that can be read."""
    return path.name.lower().endswith(DATA_FILES)


def _find_kind_fault(path: Path, suffix: str, compression: str) -> Fault | None:
    """Return the fault of a file that can't be read, or that is not what its name says."""
    name = str(path)
    if not is_data_file(path):
        return Fault(
            name, f"unsupported file type {''.join(path.suffixes) or path.name}", SUPPORTED
        )
    if compression and OPENERS[compression] is None:
        problem = f"this Python can't read {compression} files"
        return Fault(name, problem, "Decompress the file, or install zstandard.")
    kind = detect_signature(read_head(path, 64))
    if kind is None or OTHER_SUFFIXES.get(kind) == compression:
        kind = detect_signature(read_head(path, 64, compression=compression))
    if kind is None or kind == suffix.removeprefix(".") or (kind, suffix) == ("arrow", ".feather"):
        return None
    return _make_kind_fault(name, kind, suffix)


def _make_kind_fault(name: str, kind: str, suffix: str) -> Fault:
    problem = f"the file is {kind}, not {suffix.removeprefix('.')}"
    if kind == "a Git LFS pointer":
        return Fault(name, problem, "Fetch the file itself: git lfs pull.")
    if kind == "a web page":
        return Fault(name, problem, "Download the file again: its address answered with a page.")
    if kind in OTHER_SUFFIXES:
        end = OTHER_SUFFIXES[kind]
        return Fault(name, problem, f"Rename it, so that its name ends with {end}.")
    return Fault(name, problem, "Export the rows to CSV, JSON lines or Parquet.")


def _make_compression_fault(path: Path, compression: str, error: Exception) -> Fault:
    name = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}.get(compression, "data")
    is_cut = isinstance(error, EOFError)
    problem = f"truncated {name}" if is_cut else f"corrupt {name} ({error})"
    return Fault(str(path), problem, COPY_AGAIN)


def _read_text_file(
    path: Path,
    suffix: str,
    compression: str,
    report: FaultHandler,
    on_chunk: ChunkHandler | None,
    on_unpacked: ChunkHandler | None,
) -> Iterator[Row]:
    head = read_head(
        path, 4096 if suffix in JSON_SUFFIXES else ENCODING_BYTES, compression=compression
    )
    file = str(path)
    with open_bytes(path, compression, on_chunk, on_unpacked) as raw:
        if suffix in JSON_SUFFIXES:
            yield from read_json(raw, file, report, encoding=detect_encoding(head))
            return
        encoding = detect_table_encoding(head)
        if suffix in TABLE_SUFFIXES:
            layout = detect_layout(head, suffix, encoding=encoding)
            yield from read_table(raw, file, report, encoding=encoding, layout=layout)
        else:
            yield from read_text(raw, file, report, encoding=encoding)
