"""From what a user names to files, and from a file to its rows, streamed. Knows no format."""

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
from jobs.store.cache import cached_files

LONGEST_LINE = 64 * 2**20
"""Bytes. A longer line is some other kind of file, or a file without line ends."""

READABLE = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
"""What can be read; all but parquet also with .gz behind."""

DATA_FILES = (*READABLE, *(f"{kind}.gz" for kind in READABLE if kind != ".parquet"))
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
NOT_DATA = ("dataset_infos.json", "dataset_dict.json", "state.json", "dataset_info.json")

Report = Callable[[Fault], None]
Seen = Callable[[memoryview], None]
Opened: TypeAlias = "io.BufferedReader[Any] | gzip.GzipFile"


@dataclass(frozen=True)
class Row:
    """One row of a file, and where it stood."""

    values: dict[str, Any]
    file: str
    line: int

    @property
    def where(self) -> str:
        """As every message names it."""
        return f"{self.file}:{self.line}"


def resolve(where: str, *, key: str = "data") -> tuple[Path, ...]:
    """The data files behind a file, glob, folder, file://, s3:// or cached hub id, in order."""
    if where.startswith("s3://"):
        if found := tuple(path for path in cached_files(where, DATA_FILES) if _is_data(path)):
            return found
        raise _no(key, f"no data file under {where}", f"It needs one of {', '.join(READABLE)}.")
    try:
        if found := _on_disk(Path(where.removeprefix("file://")), key):
            return found
    except OSError as wrong:
        problem = f"{where} can't be looked at: {wrong.strerror}"
        raise _no(key, problem, "Check the name and its permissions.") from None
    if HUB_ID.fullmatch(where):
        return _of_hub(where, key)
    raise _no(key, f"no such file: {where}", "Name a file, a glob, a folder or a hub id.")


def read_rows(
    path: Path, *, report: Report | None = None, seen: Seen | None = None
) -> Iterator[Row]:
    """The rows of one file, streamed. A bad row is reported (by default raised) and passed over.

    `seen` is given the file's bytes as they lie on the disk, all of them if the file is sound.
    """
    tell = report or _raise
    kind, packed = _kind(path)
    if kind not in READABLE or (kind == ".parquet" and packed):
        known = f"It can be {', '.join(READABLE)}, each but parquet also as .gz."
        tell(Fault(str(path), f"unknown kind of file {''.join(path.suffixes) or path.name}", known))
        return
    try:
        if kind == ".parquet":
            yield from _read_parquet(path, seen, tell)
        else:
            with _opened(path, packed, seen) as raw:
                yield from READERS[kind](raw, str(path), tell)
    except (EOFError, zlib.error, gzip.BadGzipFile) as wrong:
        problem = "truncated gzip" if isinstance(wrong, EOFError) else f"corrupt gzip ({wrong})"
        tell(Fault(str(path), problem, "Write or copy the file again."))
    except OSError as wrong:
        said = wrong.strerror or wrong
        tell(Fault(str(path), f"can't be read: {said}", "Check that it is there and allowed."))


def _raise(fault: Fault) -> None:
    raise InputError([fault])


def _no(key: str, problem: str, remedy: str) -> InputError:
    return InputError([Fault(key, problem, remedy)])


def _kind(path: Path) -> tuple[str, bool]:
    name = path.name.lower()
    packed = name.endswith(".gz")
    return Path(name.removesuffix(".gz")).suffix, packed


def _is_data(path: Path) -> bool:
    kind, packed = _kind(path)
    hidden = path.name.startswith((".", "_")) or path.name in NOT_DATA
    return (
        path.is_file() and not hidden and kind in READABLE and not (packed and kind == ".parquet")
    )


def _on_disk(path: Path, key: str) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    return _of_folder(path, key) if path.is_dir() else _of_glob(str(path))


def _of_folder(folder: Path, key: str) -> tuple[Path, ...]:
    if found := tuple(sorted(path for path in folder.iterdir() if _is_data(path))):
        return found
    raise _no(
        key, f"no data file in the folder {folder}", f"It needs one of {', '.join(READABLE)}."
    )


def _of_glob(pattern: str) -> tuple[Path, ...]:
    return tuple(sorted(path for name in glob.glob(pattern) if (path := Path(name)).is_file()))


def _of_hub(hub_id: str, key: str) -> tuple[Path, ...]:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(hub_id, repo_type="dataset", local_files_only=True))
    except (OSError, ValueError):
        problem = f"no such file, nor a data set in the local hub cache: {hub_id}"
        raise _no(
            key, problem, f"Fetch it first: hf download --repo-type dataset {hub_id}"
        ) from None
    found = tuple(sorted(path for path in folder.rglob("*") if _is_data(path)))
    if not found:
        raise _no(key, f"no data file in {hub_id} ({folder})", f"It needs {', '.join(READABLE)}.")
    splits = {word for path in found for word in _words(path.relative_to(folder)) if word in SPLITS}
    # Taking every file would train on the test rows without a word.
    if len(splits) > 1:
        problem = f"{hub_id} holds several splits: {', '.join(sorted(splits))}"
        raise _no(key, problem, f"Name one by a glob under {folder}.")
    return found


def _words(path: Path) -> list[str]:
    return re.split(r"[^a-z]+", str(path).lower())


class _Metered(io.RawIOBase):
    """A file that shows its bytes to somebody as they are read."""

    def __init__(self, path: Path, seen: Seen) -> None:
        self._file, self._seen = io.FileIO(path), seen

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._seen(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _opened(path: Path, packed: bool, seen: Seen | None) -> Iterator[Opened]:
    raw = io.BufferedReader(_Metered(path, seen) if seen else io.FileIO(path), 2**20)
    with raw:
        if not packed:
            yield raw
            return
        # Closing what unpacks leaves what is packed open: two files, two closings.
        with gzip.GzipFile(fileobj=raw) as unpacked:
            yield unpacked


def _lines(raw: Opened, file: str, tell: Report) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends. Bad ones are reported and left out."""
    number = 0
    while line := raw.readline(LONGEST_LINE + 1):
        number += 1
        where = f"{file}:{number}"
        if len(line) > LONGEST_LINE:
            remedy = "Is it one row a line? Nothing after it was read."
            return tell(Fault(where, f"a line longer than {LONGEST_LINE:,} bytes", remedy))
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as wrong:
            problem = f"not UTF-8 (byte 0x{line[wrong.start]:02x} at column {wrong.start + 1})"
            tell(Fault(where, problem, "Save the file as UTF-8."))


def _read_jsonl(raw: Opened, file: str, tell: Report) -> Iterator[Row]:
    for number, line in _lines(raw, file, tell):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as wrong:
            tell(_bad_json(f"{file}:{number}", wrong, cut=not line.endswith("\n")))
            continue
        if isinstance(value, dict):
            yield Row(value, file, number)
        else:
            tell(_not_an_object(f"{file}:{number}", value))


def _bad_json(where: str, wrong: Exception, *, cut: bool) -> Fault:
    if cut:
        return Fault(where, "bad JSON: the last line is truncated", "Write or copy the file again.")
    said = (
        f"{wrong.msg}, column {wrong.colno}" if isinstance(wrong, json.JSONDecodeError) else wrong
    )
    return Fault(where, f"bad JSON ({said})", "One object a line, or one array in a .json file.")


def _not_an_object(where: str, value: Any) -> Fault:
    return Fault(where, f"the row is {_a(value)}, not an object", 'As in {"text": "..."}.')


def _a(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _read_json(raw: Opened, file: str, tell: Report) -> Iterator[Row]:
    """An array of objects, or JSON lines under the other name. Only an array is read whole."""
    start = raw.peek(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _read_jsonl(raw, file, tell)
        return
    try:
        text = raw.read().decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        line = wrong.object.count(b"\n", 0, wrong.start) + 1
        return tell(Fault(f"{file}:{line}", "not UTF-8", "Save the file as UTF-8."))
    yield from _elements(text, file, tell)


def _elements(text: str, file: str, tell: Report) -> Iterator[Row]:
    """One element at a time, so that each has a line and the parsed array is never held."""
    decoder, space = json.JSONDecoder(), re.compile(r"\s*")
    at, line, counted = _past(space, text, text.index("[") + 1), 1, 0
    if text[at : at + 1] == "]":
        return
    while True:
        line, counted = line + text.count("\n", counted, at), at
        where = f"{file}:{line}"
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as wrong:
            return tell(_bad_element(where, text, wrong))
        if isinstance(value, dict):
            yield Row(value, file, line)
        else:
            tell(_not_an_object(where, value))
        at = _past(space, text, at)
        mark, at = text[at : at + 1], _past(space, text, at + 1)
        if mark == "]" and at >= len(text):
            return
        if mark != ",":
            problem = "truncated: the array never ends" if not mark else "bad JSON after an element"
            return tell(Fault(where, problem, "Write or copy the file again."))


def _past(space: re.Pattern[str], text: str, at: int) -> int:
    found = space.match(text, at)
    return found.end() if found else len(text)


def _bad_element(where: str, text: str, wrong: Exception) -> Fault:
    if isinstance(wrong, json.JSONDecodeError):
        cut = wrong.pos >= len(text.rstrip()) or wrong.msg.startswith("Unterminated string")
        problem = "truncated: the array never ends" if cut else f"bad JSON ({wrong})"
        return Fault(where, problem, "Nothing after it was read.")
    return Fault(where, f"bad JSON ({wrong})", "Nothing after it was read.")


def _read_csv(raw: Opened, file: str, tell: Report, *, delimiter: str = ",") -> Iterator[Row]:
    csv.field_size_limit(LONGEST_LINE)
    lines = (line for _, line in _lines(raw, file, tell))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            line, here = reader.line_num + 1, line
            if not cells:
                continue
            if header is None:
                header = cells
                if fault := _bad_header(f"{file}:{here}", header):
                    return tell(fault)
            elif len(cells) == len(header):
                yield Row(dict(zip(header, cells, strict=True)), file, here)
            else:
                problem = f"{len(cells)} cells where the header has {len(header)}"
                tell(Fault(f"{file}:{here}", problem, "Quote cells that hold the separator."))
    except csv.Error as wrong:
        remedy = "Is a quote left open? Nothing after it was read."
        tell(Fault(f"{file}:{line}", f"bad CSV ({wrong})", remedy))


def _bad_header(where: str, header: list[str]) -> Fault | None:
    if len(set(header)) == len(header) and all(name.strip() for name in header):
        return None
    return Fault(where, f"the header has empty or double names: {header}", "Name each column once.")


def _read_tsv(raw: Opened, file: str, tell: Report) -> Iterator[Row]:
    return _read_csv(raw, file, tell, delimiter="\t")


def _read_txt(raw: Opened, file: str, tell: Report) -> Iterator[Row]:
    for number, line in _lines(raw, file, tell):
        if line.strip():
            yield Row({"text": line.rstrip("\r\n")}, file, number)


READERS: dict[str, Callable[[Opened, str, Report], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_txt,
}


def _read_parquet(path: Path, seen: Seen | None, tell: Report) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if seen:
        # Parquet is read from its end and by columns: the digest needs a pass of its own.
        with path.open("rb") as raw:
            while chunk := raw.read(2**20):
                seen(memoryview(chunk))
    number = 0
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, str(path), number)
    except (pa.ArrowException, UnicodeDecodeError) as wrong:
        said = str(wrong).split(".")[0]
        where = f"{path}:{number + 1}"
        tell(Fault(where, f"not parquet, or cut short ({said})", "Write or copy the file again."))
