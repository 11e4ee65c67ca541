"""Scan a data set before a run: one streaming pass that reports all faults."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jobs.errors import Fault, InputError, ReadLimitExceeded
from jobs.inspect.datasets.columns import Columns, find_columns, get_column, list_used_columns
from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.file_selection import FileSelection, SkippedFile, select_files
from jobs.inspect.datasets.files import describe_file, is_table, read_rows
from jobs.inspect.datasets.formats import ChatExample, Example, LabelledExample, read_example
from jobs.inspect.datasets.label_vectors import LabelVectorWatch
from jobs.inspect.datasets.labels import (
    list_names,
    list_unknown_labels,
    merge_numbers,
    sort_labels,
    warn_of_similar_labels,
)
from jobs.spec.tasks import TASK_FORMATS

MAX_FAULTS = 20
"""More faults than this are most likely one mistake, repeated."""

PROGRESS_EVERY_ROWS = 1000
STREAMED_ROWS = 2000
"""Rows of a streamed data set that are checked before a run."""
END_BYTES = 2**20
MAX_INFLATION = 32
"""Rows of text compress to a tenth, or a thirtieth if they repeat; a bomb to a thousandth."""
MAX_ROW_WARNINGS = 5
MAX_COLUMNS = 100
"""So many names of columns are compared with those that are read."""

RowFaults = Literal["raise", "return", "skip"]
"""What to do with the faults of single rows: raise them with all others, return them with the scan
if there are no others, or leave them to the tally of the tokens."""
ScanProgress = Callable[[int, int, int], None]
"""A callback with the rows read, the bytes read and the bytes in total."""


@dataclass(frozen=True)
class DatasetScan:
    """The result of a scan."""

    files: tuple[Path, ...]
    format: str
    rows_by_file: tuple[int, ...]
    labels: tuple[str, ...]
    """The names of all classes."""
    sha256: str | None
    """Digest of all bytes; of a streamed data set, of its files' names, sizes and ends; else None.
    """
    bytes: int
    columns: dict[str, str] = field(default_factory=dict)
    """The column of each field that has another name than its field."""
    kinds: tuple[str, ...] = ()
    """The kind of each file, with its separator and encoding if they are not the usual ones."""
    skipped: tuple[SkippedFile, ...] = ()
    """Files of the same folder that are not read."""
    unused_columns: tuple[str, ...] = ()
    """Columns that no example reads."""
    warnings: tuple[str, ...] = ()
    needs_template: bool = False
    """Whether there are conversations, which only a chat template can render."""
    label_kind: str = "one"
    """data.labels: the labels of a row."""
    numbers: tuple[float, float] | None = None
    """The smallest and the largest number of rows that are labelled by one."""
    is_complete: bool = True
    """False if only the first rows were read."""
    row_faults: tuple[Fault, ...] = ()
    """The faults of single rows, if they are to be reported together with those of rendering."""

    @property
    def rows(self) -> int:
        """The number of scanned rows over all files."""
        return sum(self.rows_by_file)

    def to_json(self) -> dict[str, Any]:
        """Return what the scan tells of files and columns, as plain values."""
        files = zip(self.files, self.kinds, self.rows_by_file, strict=True)
        return {
            "format": self.format,
            "columns": dict(self.columns),
            "files": [
                {"path": str(path), "kind": kind, "rows": rows} for path, kind, rows in files
            ],
            "complete": self.is_complete,
            "skipped": [{"path": str(item.path), "reason": item.reason} for item in self.skipped],
            "unused_columns": list(self.unused_columns),
            "warnings": list(self.warnings),
        }


def scan_dataset(
    address: str,
    fmt: str,
    task: str,
    key: str,
    *,
    columns: Columns | None = None,
    label_kind: str = "one",
    limit: int | None = None,
    progress: ScanProgress | None = None,
    row_faults: RowFaults = "raise",
    streaming: bool = False,
    max_bytes: int | None = None,
) -> DatasetScan:
    """Read every row once (or the first `limit`). Raise InputError with all faults.

    Raise ReadLimitExceeded if that takes more than `max_bytes`, as stored or decompressed.
    With `streaming` the first rows are read only, and the digest is that of `digest_ends`.
    """
    if streaming:
        limit = min(limit or STREAMED_ROWS, STREAMED_ROWS)
    selection = select_files(address, key=key)
    files = selection.files
    if fmt != "auto" and fmt not in TASK_FORMATS[task]:
        formats = " or ".join(TASK_FORMATS[task])
        raise InputError([Fault("data.format", f"{fmt} does not fit {task}", f"Use {formats}.")])
    scan = _DatasetPass(files, fmt, task, columns or {}, label_kind, limit, progress, max_bytes)
    scan.run()
    if not scan.rows and not scan.faults.count:
        raise InputError([_make_no_rows_fault(key, files)])
    # Without a format no row can be read: the faults of the rows say why.
    scan.faults.raise_any(with_rows=row_faults == "raise" or scan.layout_from is None)
    if fault := scan.vectors.find_fault():
        # It names one row, but it is of all: no row may be skipped for it.
        raise InputError([fault])
    result = scan.make_result(selection)
    if streaming:
        result = replace(result, sha256=digest_ends(files))
    return replace(result, row_faults=scan.faults.list_rows()) if row_faults == "return" else result


def digest_ends(files: Sequence[Path]) -> str:
    """Return a digest of the files' names and sizes, and of the first and the last MiB of each.

    It changes when rows are added, and takes no time that depends on the size of the data.
    """
    digest = hashlib.sha256(b"ends of files\0")
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(END_BYTES))
            file.seek(max(0, size - END_BYTES))
            digest.update(file.read(END_BYTES))
    return digest.hexdigest()


def _make_no_rows_fault(key: str, files: Sequence[Path]) -> Fault:
    names = ", ".join(map(str, files[:3])) + ", ..." * (len(files) > 3)
    is_empty = not any(path.stat().st_size for path in files)
    problem = f"no rows in {names}{' (empty)' if is_empty else ''}"
    return Fault(key, problem, "Use files that contain rows, below a header in CSV.")


def check_train_labels(train: DatasetScan) -> list[Fault]:
    """Return a fault if there is nothing to tell apart: one class only, or one number."""
    if train.format != "classification":
        return []
    subject, problem = "a classifier needs at least two", ""
    if train.numbers is not None and train.numbers[0] == train.numbers[1]:
        subject, problem = "all predictions would be this number", f"{train.numbers[0]:g}"
    elif train.label_kind == "many" and not train.labels:
        subject, problem = "there is nothing to learn", "[]"
    elif train.label_kind == "one" and len(train.labels) == 1:
        problem = repr(train.labels[0])
    if not problem:
        return []
    problem = f"all {train.rows:,} rows have the label {problem}"
    return [Fault("data.train", problem, f"Add rows with another label: {subject}.")]


def check_eval_labels(train: DatasetScan, evaluation: DatasetScan) -> list[Fault]:
    """Return a fault if evaluation rows have labels that no training row has."""
    unknown = list_unknown_labels(evaluation.labels, train.labels)
    if not unknown:
        return []
    names = ", ".join(map(repr, unknown[:8])) + ", ..." * (len(unknown) > 8)
    problem = f"labels without rows in the training data: {names}"
    return [
        Fault("data.eval", problem, "Add such rows to data.train, or remove them from data.eval.")
    ]


class _FaultCollector:
    """Keeps the first faults and counts all: those of single rows, and the others."""

    def __init__(self) -> None:
        self.faults, self.row_faults = list[Fault](), list[Fault]()
        self.count = self.row_count = 0

    def add(self, fault: Fault) -> None:
        faults = self.row_faults if fault.is_of_row else self.faults
        self.count_hidden(is_of_row=fault.is_of_row)
        if len(faults) < MAX_FAULTS:
            faults.append(fault)

    def count_hidden(self, *, is_of_row: bool) -> None:
        self.count += 1
        self.row_count += is_of_row

    def raise_any(self, *, with_rows: bool) -> None:
        """Raise InputError if there is a fault of a file, or `with_rows` one of a row."""
        if self.faults or (with_rows and self.row_count):
            raise InputError([*self.faults, *self.list_rows()])

    def list_rows(self) -> tuple[Fault, ...]:
        """Return the first faults of rows, and how many more there are."""
        if omitted := self.row_count - len(self.row_faults):
            summary = Fault("data", f"{omitted:,} more errors are not shown", "Fix these first.")
            return (*self.row_faults, summary)
        return tuple(self.row_faults)


class _DatasetPass:
    """A pass over the files, with its results so far."""

    def __init__(
        self,
        files: tuple[Path, ...],
        fmt: str,
        task: str,
        columns: Columns,
        label_kind: str,
        limit: int | None,
        progress: ScanProgress | None,
        max_bytes: int | None,
    ) -> None:
        self.files, self.format, self.task, self.columns = files, fmt, task, columns
        self.label_kind, self.limit, self.progress = label_kind, limit, progress
        self.faults, self.labels = _FaultCollector(), set[str]()
        self.numbers: tuple[float, float] | None = None
        self.vectors = LabelVectorWatch()
        self.rows_by_file, self.rows = [0] * len(files), 0
        self.digest, self.bytes_read, self.bytes_unpacked = hashlib.sha256(), 0, 0
        self.max_bytes = max_bytes
        self.bytes_total = sum(path.stat().st_size for path in files)
        self.layout_from: Row | None = None
        self.mismatches = set[tuple[str, ...]]()
        self.column_names, self.needs_template = dict[str, None](), False
        self.is_complete = True
        self.row_warnings, self.warned_rows = list[str](), 0

    def run(self) -> None:
        try:
            self._read_files()
        except ReadLimitExceeded:
            # What is known to be wrong is wrong, however much follows.
            if not self.faults.count:
                raise
            self.is_complete = False

    def _read_files(self) -> None:
        for index, path in enumerate(self.files):
            rows = read_rows(
                path,
                on_fault=self._add_fault,
                on_chunk=self._digest_chunk,
                on_unpacked=partial(self._count_unpacked, path),
            )
            for row in rows:
                self.rows += 1
                self.rows_by_file[index] += 1
                self._check_row(row)
                if self.progress and self.rows % PROGRESS_EVERY_ROWS == 0:
                    self.progress(self.rows, self.bytes_read, self.bytes_total)
                if self.rows == self.limit:
                    self.is_complete = path == self.files[-1] and self._is_exhausted(rows)
                    return
        if self.progress:
            self.progress(self.rows, self.bytes_read, self.bytes_total)

    def make_result(self, selection: FileSelection) -> DatasetScan:
        used = list_used_columns(self.format, self.columns)
        labels = self.labels
        if self.label_kind == "one" and any(map(is_table, self.files)):
            labels = merge_numbers(labels)
        warnings = (*self._list_warnings(), *warn_of_similar_labels(labels))
        return DatasetScan(
            files=self.files,
            format=self.format,
            rows_by_file=tuple(self.rows_by_file),
            labels=sort_labels(labels),
            sha256=self.digest.hexdigest() if self.is_complete else None,
            bytes=self.bytes_total,
            columns=dict(self.columns),
            kinds=tuple(map(describe_file, self.files)),
            skipped=selection.skipped,
            unused_columns=tuple(name for name in self.column_names if name not in used),
            warnings=selection.warnings + warnings,
            needs_template=self.needs_template,
            label_kind=self.label_kind,
            numbers=self.numbers,
            is_complete=self.is_complete,
        )

    def _add_fault(self, fault: Fault) -> None:
        self.faults.add(fault)

    def _is_exhausted(self, rows: Iterator[Row]) -> bool:
        """Return whether there is no more row, and nothing wrong with what follows."""
        faults, self.faults = self.faults, _FaultCollector()
        is_exhausted = next(rows, None) is None and not self.faults.count
        self.faults = faults
        return is_exhausted

    def _digest_chunk(self, chunk: memoryview) -> None:
        self.digest.update(chunk)
        self.bytes_read += len(chunk)
        self._check_limit(self.bytes_read)

    def _count_unpacked(self, path: Path, chunk: memoryview) -> None:
        self.bytes_unpacked += len(chunk)
        if self.max_bytes is None or self.bytes_unpacked <= self.max_bytes:
            return
        if self.bytes_unpacked > MAX_INFLATION * self.bytes_read:
            problem = f"its first {self.bytes_read:,} bytes decompress to {self.bytes_unpacked:,}"
            raise InputError([Fault(str(path), problem, "Decompress the file, or write it again.")])
        self._check_limit(self.bytes_unpacked)

    def _check_limit(self, count: int) -> None:
        if self.max_bytes is not None and count > self.max_bytes:
            raise ReadLimitExceeded(f"the first rows take more than {self.max_bytes:,} bytes")

    def _list_warnings(self) -> Iterator[str]:
        yield from self.row_warnings
        if omitted := self.warned_rows - len(self.row_warnings):
            yield f"{omitted:,} more rows are like these"

    def _check_row(self, row: Row) -> None:
        self.warned_rows += bool(row.warning)
        if row.warning and len(self.row_warnings) < MAX_ROW_WARNINGS:
            self.row_warnings.append(row.warning)
        if self.layout_from is None:
            self._find_layout(row)
        if self.layout_from is None and not self._is_new_mismatch(row):
            self.faults.count_hidden(is_of_row=True)
            return
        try:
            example = read_example(
                row,
                self.format,
                task=self.task,
                columns=self.columns,
                label_kind=self.label_kind,
            )
        except InputError as error:
            for fault in error.faults:
                self.faults.add(self._extend_fault(fault, row))
        else:
            self._note_example(row, example)

    def _find_layout(self, row: Row) -> None:
        # The first row with a format sets it for all: two formats in a data set are an error.
        match = find_columns(row.values, self.format, task=self.task, columns=self.columns)
        if match is not None:
            self.format, self.columns = match
            self.layout_from = row

    def _is_new_mismatch(self, row: Row) -> bool:
        """Return whether no row before had these columns: one message for all of them will do."""
        columns = (row.file, *row.values)
        if columns in self.mismatches or len(self.mismatches) >= MAX_FAULTS:
            return False
        self.mismatches.add(columns)
        return True

    def _extend_fault(self, fault: Fault, row: Row) -> Fault:
        """Name the file that set the format if a row of another file does not fit it."""
        first = self.layout_from
        is_mismatch = fault.problem.startswith(f"{self.format} needs")
        if first is None or first.file == row.file or not is_mismatch:
            return fault
        problem = f"{fault.problem}, but {first.file} has {self.format} rows"
        remedy = "Use files of one format: name them with a glob, or one file."
        return Fault(fault.key, problem, remedy)

    def _note_example(self, row: Row, example: Example) -> None:
        if isinstance(example, LabelledExample):
            self.labels.update(list_names(example.label))
            if isinstance(example.label, tuple):
                self.vectors.observe(row, get_column(self.columns, self.format, "label"))
            if isinstance(number := example.label, float):
                low, high = self.numbers or (number, number)
                self.numbers = min(low, number), max(high, number)
        self.needs_template |= isinstance(example, ChatExample)
        if len(self.column_names) < MAX_COLUMNS:
            self.column_names.update(dict.fromkeys(row.values))
