"""Scan a data set before a run: one streaming pass that reports all faults."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.files import Row, read_rows, resolve_files
from jobs.inspect.datasets.formats import TASK_FORMATS, LabelledExample, detect_format, read_example

MAX_FAULTS = 20
"""More faults than this are most likely one mistake, repeated."""

PROGRESS_EVERY_ROWS = 1000

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

    @property
    def rows(self) -> int:
        """The number of scanned rows over all files."""
        return sum(self.rows_by_file)


def scan_dataset(
    address: str,
    fmt: str,
    task: str,
    key: str,
    *,
    limit: int | None = None,
    progress: ScanProgress | None = None,
) -> DatasetScan:
    """Read every row once (or the first `limit`). Raise InputError with all faults."""
    files = resolve_files(address, key=key)
    if fmt != "auto" and fmt not in TASK_FORMATS[task]:
        formats = " or ".join(TASK_FORMATS[task])
        raise InputError([Fault("data.format", f"{fmt} does not fit {task}", f"Use {formats}.")])
    scan = _DatasetPass(files, fmt, task, limit, progress)
    scan.run()
    if not scan.rows and not scan.faults.count:
        names = ", ".join(map(str, files[:3])) + ", ..." * (len(files) > 3)
        raise InputError([Fault(key, f"no rows in {names}", "Use files that contain rows.")])
    scan.faults.raise_any()
    return DatasetScan(
        files=files,
        format=scan.format,
        rows_by_file=tuple(scan.rows_by_file),
        labels=sort_labels(scan.labels),
        sha256=scan.digest.hexdigest() if limit is None else None,
        bytes=scan.bytes_total,
    )


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


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the labels in the order of their class ids: integers by value, others by name."""
    try:
        return tuple(sorted(labels := set(labels), key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))


class _FaultCollector:
    """Keeps the first faults and counts all."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.count = 0

    def add(self, fault: Fault) -> None:
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
        limit: int | None,
        progress: ScanProgress | None,
    ) -> None:
        self.files, self.format, self.task = files, fmt, task
        self.limit, self.progress = limit, progress
        self.faults, self.labels = _FaultCollector(), set[str]()
        self.rows_by_file, self.rows = [0] * len(files), 0
        self.digest, self.bytes_read = hashlib.sha256(), 0
        self.bytes_total = sum(path.stat().st_size for path in files)

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

    def _digest_chunk(self, chunk: memoryview) -> None:
        self.digest.update(chunk)
        self.bytes_read += len(chunk)

    def _check_row(self, row: Row) -> None:
        # The first row with a format sets it for all: two formats in one file are an error.
        if self.format == "auto":
            self.format = detect_format(row.values, task=self.task) or "auto"
        try:
            example = read_example(row, self.format, task=self.task)
        except InputError as error:
            for fault in error.faults:
                self.faults.add(fault)
            return
        if isinstance(example, LabelledExample):
            self.labels.add(example.label)
