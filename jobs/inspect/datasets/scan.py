"""Scan a data set before a run: one streaming pass that reports all faults."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.columns import (
    TASK_FORMATS,
    Columns,
    find_columns,
    list_used_columns,
)
from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.file_selection import FileSelection, SkippedFile, select_files
from jobs.inspect.datasets.files import describe_file, read_rows
from jobs.inspect.datasets.formats import ChatExample, Example, LabelledExample, read_example
from jobs.inspect.datasets.labels import sort_labels, warn_of_similar_labels

MAX_FAULTS = 20
"""More faults than this are most likely one mistake, repeated."""

PROGRESS_EVERY_ROWS = 1000
MAX_COLUMNS = 100
"""So many names of columns are compared with those that are read."""

ScanProgress = Callable[[int, int, int], None]
"""A callback with the rows read, the bytes read and the bytes in total."""


@dataclass(frozen=True)
class DatasetScan:
    """The result of a scan."""

    files: tuple[Path, ...]
    format: str
    rows_by_file: tuple[int, ...]
    labels: tuple[str, ...]
    sha256: str | None
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
            "complete": self.sha256 is not None,
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
    limit: int | None = None,
    progress: ScanProgress | None = None,
    skips_bad_rows: bool = False,
) -> DatasetScan:
    """Read every row once (or the first `limit`). Raise InputError with all faults.

    With `skips_bad_rows` those of single rows are left to the tally of the tokens.
    """
    selection = select_files(address, key=key)
    files = selection.files
    if fmt != "auto" and fmt not in TASK_FORMATS[task]:
        formats = " or ".join(TASK_FORMATS[task])
        raise InputError([Fault("data.format", f"{fmt} does not fit {task}", f"Use {formats}.")])
    scan = _DatasetPass(files, fmt, task, columns or {}, limit, progress)
    scan.faults.skips_rows = skips_bad_rows
    scan.run()
    if not scan.rows and not scan.faults.count:
        raise InputError([_make_no_rows_fault(key, files)])
    scan.faults.raise_any()
    return scan.make_result(selection)


def _make_no_rows_fault(key: str, files: Sequence[Path]) -> Fault:
    names = ", ".join(map(str, files[:3])) + ", ..." * (len(files) > 3)
    is_empty = not any(path.stat().st_size for path in files)
    problem = f"no rows in {names}{' (empty)' if is_empty else ''}"
    return Fault(key, problem, "Use files that contain rows, below a header in CSV.")


def check_train_labels(train: DatasetScan) -> list[Fault]:
    """Return a fault if a classifier would have one class only."""
    if train.format != "classification" or len(train.labels) > 1:
        return []
    problem = f"all {train.rows:,} rows have the label {train.labels[0]!r}"
    return [
        Fault(
            "data.train", problem, "Add rows with another label: a classifier needs at least two."
        )
    ]


def check_eval_labels(train: DatasetScan, evaluation: DatasetScan) -> list[Fault]:
    """Return a fault if evaluation rows have labels that no training row has."""
    unknown = [label for label in evaluation.labels if label not in set(train.labels)]
    if not unknown:
        return []
    names = ", ".join(map(repr, unknown[:8])) + ", ..." * (len(unknown) > 8)
    problem = f"labels without rows in the training data: {names}"
    return [
        Fault("data.eval", problem, "Add such rows to data.train, or remove them from data.eval.")
    ]


class _FaultCollector:
    """Keeps the first faults and counts all."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.count = 0
        self.skips_rows = False

    def add(self, fault: Fault) -> None:
        if self.skips_rows and fault.is_of_row:
            return
        self.count += 1
        if self.count <= MAX_FAULTS:
            self.faults.append(fault)

    def raise_any(self) -> None:
        if omitted := self.count - len(self.faults):
            summary = Fault("data", f"{omitted:,} more errors are not shown", "Fix these first.")
            raise InputError([*self.faults, summary])
        if self.faults:
            raise InputError(self.faults)


class _DatasetPass:
    """A pass over the files, with its results so far."""

    def __init__(
        self,
        files: tuple[Path, ...],
        fmt: str,
        task: str,
        columns: Columns,
        limit: int | None,
        progress: ScanProgress | None,
    ) -> None:
        self.files, self.format, self.task, self.columns = files, fmt, task, columns
        self.limit, self.progress = limit, progress
        self.faults, self.labels = _FaultCollector(), set[str]()
        self.rows_by_file, self.rows = [0] * len(files), 0
        self.digest, self.bytes_read = hashlib.sha256(), 0
        self.bytes_total = sum(path.stat().st_size for path in files)
        self.layout_from: Row | None = None
        self.mismatches = set[tuple[str, ...]]()
        self.column_names, self.needs_template = dict[str, None](), False

    def run(self) -> None:
        for index, path in enumerate(self.files):
            for row in read_rows(path, on_fault=self.faults.add, on_chunk=self._digest_chunk):
                self.rows += 1
                self.rows_by_file[index] += 1
                self._check_row(row)
                if self.progress and self.rows % PROGRESS_EVERY_ROWS == 0:
                    self.progress(self.rows, self.bytes_read, self.bytes_total)
                if self.rows == self.limit:
                    return
        if self.progress:
            self.progress(self.rows, self.bytes_read, self.bytes_total)

    def make_result(self, selection: FileSelection) -> DatasetScan:
        used = list_used_columns(self.format, self.columns)
        return DatasetScan(
            files=self.files,
            format=self.format,
            rows_by_file=tuple(self.rows_by_file),
            labels=sort_labels(self.labels),
            sha256=self.digest.hexdigest() if self.limit is None else None,
            bytes=self.bytes_total,
            columns=dict(self.columns),
            kinds=tuple(map(describe_file, self.files)),
            skipped=selection.skipped,
            unused_columns=tuple(name for name in self.column_names if name not in used),
            warnings=(*selection.warnings, *warn_of_similar_labels(self.labels)),
            needs_template=self.needs_template,
        )

    def _digest_chunk(self, chunk: memoryview) -> None:
        self.digest.update(chunk)
        self.bytes_read += len(chunk)

    def _check_row(self, row: Row) -> None:
        if self.layout_from is None:
            self._find_layout(row)
        if self.layout_from is None and not self._is_new_mismatch(row):
            self.faults.count += 1
            return
        try:
            example = read_example(row, self.format, task=self.task, columns=self.columns)
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
            self.labels.add(example.label)
        self.needs_template |= isinstance(example, ChatExample)
        if len(self.column_names) < MAX_COLUMNS:
            self.column_names.update(dict.fromkeys(row.values))
