"""Resolve the address of a data set to files, and stream the rows of a file."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from jobs.errors import Fault, InputError
from jobs.store.cache import fetch_files

MAX_LINE_BYTES = 64 * 2**20
"""A longer line is a sign of another kind of file, or of a file without line ends."""

READABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
"""Suffixes of supported files; all but parquet may be followed by .gz."""

DATA_FILES = (
    *READABLE_SUFFIXES,
    *(f"{suffix}.gz" for suffix in READABLE_SUFFIXES if suffix != ".parquet"),
)
COPY_AGAIN = "Write or copy the file again."
UNREAD = "Fix this error: the rest of the file was not read."
SUPPORTED = f"Supported: {', '.join(READABLE_SUFFIXES)}."
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TRUNCATED_ARRAY = "truncated: the array never ends"
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
METADATA_FILES = ("dataset_infos.json", "dataset_dict.json", "state.json", "dataset_info.json")

FaultHandler = Callable[[Fault], None]
ChunkHandler = Callable[[memoryview], None]
ReadableFile: TypeAlias = "io.BufferedReader[Any] | gzip.GzipFile"


@dataclass(frozen=True)
class Row:
    """A row of a file, with its file and line."""

    values: dict[str, Any]
    file: str
    line: int

    @property
    def location(self) -> str:
        """The file and line, as messages name the row."""
        return f"{self.file}:{self.line}"


def resolve_files(address: str, *, key: str = "data") -> tuple[Path, ...]:
    """Return the data files, sorted, of a file, glob, folder, file://, s3:// or cached hub id.

    Raise InputError if there are none.
    """
    if address.startswith("s3://"):
        if paths := tuple(path for path in fetch_files(address, DATA_FILES) if _is_data_file(path)):
            return paths
        raise _make_error(key, f"no data file under {address}", SUPPORTED)
    try:
        if paths := _find_local_files(Path(address.removeprefix("file://")), key):
            return paths
    except OSError as error:
        problem = f"{address} can't be read: {error.strerror}"
        raise _make_error(key, problem, "Check its name and its permissions.") from None
    if HUB_ID.fullmatch(address):
        return _find_hub_files(address, key)
    raise _make_error(key, f"file not found: {address}", "Use a file, glob, folder or hub id.")


def read_rows(
    path: Path, *, on_fault: FaultHandler | None = None, on_chunk: ChunkHandler | None = None
) -> Iterator[Row]:
    """Stream the rows of one file. A bad row is reported (by default raised) and skipped.

    `on_chunk` receives the raw bytes of the file, all of them if the file is sound.
    """
    report = on_fault or _raise_fault
    suffix, is_gzipped = _split_suffix(path)
    if suffix not in READABLE_SUFFIXES or (suffix == ".parquet" and is_gzipped):
        remedy = f"Supported: {', '.join(READABLE_SUFFIXES)}, all but parquet also as .gz."
        problem = f"unsupported file type {''.join(path.suffixes) or path.name}"
        report(Fault(str(path), problem, remedy))
        return
    try:
        if suffix == ".parquet":
            yield from _read_parquet(path, on_chunk, report)
        else:
            with _open_file(path, is_gzipped, on_chunk) as raw:
                yield from READERS[suffix](raw, str(path), report)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        problem = "truncated gzip" if isinstance(error, EOFError) else f"corrupt gzip ({error})"
        report(Fault(str(path), problem, COPY_AGAIN))
    except OSError as error:
        reason = error.strerror or error
        report(Fault(str(path), f"can't be read: {reason}", "Check that it is readable."))


def _raise_fault(fault: Fault) -> None:
    raise InputError([fault])


def _make_error(key: str, problem: str, remedy: str) -> InputError:
    return InputError([Fault(key, problem, remedy)])


def _split_suffix(path: Path) -> tuple[str, bool]:
    name = path.name.lower()
    is_gzipped = name.endswith(".gz")
    return Path(name.removesuffix(".gz")).suffix, is_gzipped


def _is_data_file(path: Path) -> bool:
    suffix, is_gzipped = _split_suffix(path)
    is_hidden = path.name.startswith((".", "_")) or path.name in METADATA_FILES
    return (
        path.is_file()
        and not is_hidden
        and suffix in READABLE_SUFFIXES
        and not (is_gzipped and suffix == ".parquet")
    )


def _find_local_files(path: Path, key: str) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    return _list_folder(path, key) if path.is_dir() else _expand_glob(str(path))


def _list_folder(folder: Path, key: str) -> tuple[Path, ...]:
    if paths := tuple(sorted(path for path in folder.iterdir() if _is_data_file(path))):
        return paths
    raise _make_error(key, f"no data file in the folder {folder}", SUPPORTED)


def _expand_glob(pattern: str) -> tuple[Path, ...]:
    return tuple(sorted(path for name in glob.glob(pattern) if (path := Path(name)).is_file()))


def _find_hub_files(hub_id: str, key: str) -> tuple[Path, ...]:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(hub_id, repo_type="dataset", local_files_only=True))
    except (OSError, ValueError):
        problem = f"neither a file nor a data set in the local hub cache: {hub_id}"
        remedy = f"Download it first: hf download --repo-type dataset {hub_id}"
        raise _make_error(key, problem, remedy) from None
    paths = tuple(sorted(path for path in folder.rglob("*") if _is_data_file(path)))
    if not paths:
        raise _make_error(key, f"no data file in {hub_id} ({folder})", SUPPORTED)
    splits = {
        word for path in paths for word in _split_words(path.relative_to(folder)) if word in SPLITS
    }
    # Using every file would silently train on the test rows.
    if len(splits) > 1:
        problem = f"{hub_id} has several splits: {', '.join(sorted(splits))}"
        raise _make_error(key, problem, f"Select one with a glob under {folder}.")
    return paths


def _split_words(path: Path) -> list[str]:
    return re.split(r"[^a-z]+", str(path).lower())


class _MeteredFile(io.RawIOBase):
    """A file that passes its bytes to `on_chunk` as they are read."""

    def __init__(self, path: Path, on_chunk: ChunkHandler) -> None:
        self._file, self._on_chunk = io.FileIO(path), on_chunk

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._on_chunk(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _open_file(
    path: Path, is_gzipped: bool, on_chunk: ChunkHandler | None
) -> Iterator[ReadableFile]:
    raw = io.BufferedReader(_MeteredFile(path, on_chunk) if on_chunk else io.FileIO(path), 2**20)
    with raw:
        if not is_gzipped:
            yield raw
            return
        # Closing a GzipFile does not close the file below it.
        with gzip.GzipFile(fileobj=raw) as unpacked:
            yield unpacked


def _read_lines(raw: ReadableFile, file: str, report: FaultHandler) -> Iterator[tuple[int, str]]:
    """Yield numbered lines with their line ends. Bad ones are reported and skipped."""
    number = 0
    while line := raw.readline(MAX_LINE_BYTES + 1):
        number += 1
        location = f"{file}:{number}"
        if len(line) > MAX_LINE_BYTES:
            remedy = "Check that each row is one line. The rest of the file was not read."
            return report(
                Fault(location, f"the line is longer than {MAX_LINE_BYTES:,} bytes", remedy)
            )
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1})"
            report(Fault(location, problem, "Save the file as UTF-8."))


def _read_jsonl(raw: ReadableFile, file: str, report: FaultHandler) -> Iterator[Row]:
    for number, line in _read_lines(raw, file, report):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            report(_make_json_fault(f"{file}:{number}", error, truncated=not line.endswith("\n")))
            continue
        if isinstance(value, dict):
            yield Row(value, file, number)
        else:
            report(_make_type_fault(f"{file}:{number}", value))


def _make_json_fault(location: str, error: Exception, *, truncated: bool) -> Fault:
    if truncated:
        return Fault(location, "invalid JSON: the last line is truncated", COPY_AGAIN)
    reason = (
        f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
    )
    remedy = "Write one object per line, or one array in a .json file."
    return Fault(location, f"invalid JSON ({reason})", remedy)


def _make_type_fault(location: str, value: Any) -> Fault:
    problem = f"the row is {_name_json_type(value)}, not an object"
    return Fault(location, problem, 'Write an object, for example {"text": "..."}.')


def _name_json_type(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _read_json(raw: ReadableFile, file: str, report: FaultHandler) -> Iterator[Row]:
    """Yield the rows of a JSON array, or of JSON lines. Only an array is read into memory."""
    start = raw.peek(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _read_jsonl(raw, file, report)
        return
    try:
        text = raw.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        return report(Fault(f"{file}:{line}", "not UTF-8", "Save the file as UTF-8."))
    yield from _read_elements(text, file, report)


def _read_elements(text: str, file: str, report: FaultHandler) -> Iterator[Row]:
    """Yield one element at a time, so that each has a line and no parsed array is in memory."""
    decoder, whitespace = json.JSONDecoder(), re.compile(r"\s*")
    position, line, counted_to = _skip_whitespace(whitespace, text, text.index("[") + 1), 1, 0
    if text[position : position + 1] == "]":
        return
    while True:
        line, counted_to = line + text.count("\n", counted_to, position), position
        location = f"{file}:{line}"
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            return report(_make_element_fault(location, text, error))
        if isinstance(value, dict):
            yield Row(value, file, line)
        else:
            report(_make_type_fault(location, value))
        position = _skip_whitespace(whitespace, text, position)
        separator, position = (
            text[position : position + 1],
            _skip_whitespace(whitespace, text, position + 1),
        )
        if separator == "]" and position >= len(text):
            return
        if separator != ",":
            problem = (
                "truncated: the array never ends"
                if not separator
                else "invalid JSON after an element"
            )
            return report(Fault(location, problem, COPY_AGAIN))


def _skip_whitespace(whitespace: re.Pattern[str], text: str, position: int) -> int:
    match = whitespace.match(text, position)
    return match.end() if match else len(text)


def _make_element_fault(location: str, text: str, error: Exception) -> Fault:
    if isinstance(error, json.JSONDecodeError):
        truncated = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        problem = TRUNCATED_ARRAY if truncated else f"invalid JSON ({error})"
        return Fault(location, problem, UNREAD)
    return Fault(location, f"invalid JSON ({error})", UNREAD)


def _read_csv(
    raw: ReadableFile, file: str, report: FaultHandler, *, delimiter: str = ","
) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = (line for _, line in _read_lines(raw, file, report))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            line, row_line = reader.line_num + 1, line
            if not cells:
                continue
            if header is None:
                header = cells
                if fault := _check_header(f"{file}:{row_line}", header):
                    return report(fault)
            elif len(cells) == len(header):
                yield Row(dict(zip(header, cells, strict=True)), file, row_line)
            else:
                problem = f"{len(cells)} cells, but the header has {len(header)}"
                report(
                    Fault(f"{file}:{row_line}", problem, "Quote cells that contain the separator.")
                )
    except csv.Error as error:
        remedy = "Check for an unclosed quote. The rest of the file was not read."
        report(Fault(f"{file}:{line}", f"invalid CSV ({error})", remedy))


def _check_header(location: str, header: list[str]) -> Fault | None:
    if len(set(header)) == len(header) and all(name.strip() for name in header):
        return None
    problem = f"the header has empty or repeated names: {header}"
    return Fault(location, problem, "Give each column a unique name.")


def _read_tsv(raw: ReadableFile, file: str, report: FaultHandler) -> Iterator[Row]:
    return _read_csv(raw, file, report, delimiter="\t")


def _read_txt(raw: ReadableFile, file: str, report: FaultHandler) -> Iterator[Row]:
    for number, line in _read_lines(raw, file, report):
        if line.strip():
            yield Row({"text": line.rstrip("\r\n")}, file, number)


READERS: dict[str, Callable[[ReadableFile, str, FaultHandler], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_txt,
}


def _read_parquet(path: Path, on_chunk: ChunkHandler | None, report: FaultHandler) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if on_chunk:
        # Parquet is read from its end and by column, so the digest needs a pass of its own.
        with path.open("rb") as raw:
            while chunk := raw.read(2**20):
                on_chunk(memoryview(chunk))
    number = 0
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, str(path), number)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).split(".")[0]
        location = f"{path}:{number + 1}"
        report(Fault(location, f"invalid or truncated parquet ({reason})", COPY_AGAIN))
