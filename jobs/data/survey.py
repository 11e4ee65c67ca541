"""The check of the data before a run: one streaming pass, and every fault that it meets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from jobs.data.files import Row, read_rows, resolve
from jobs.data.formats import FORMATS_OF_TASK, Labelled, detect, read_example
from jobs.errors import Fault, InputError

MOST_FAULTS = 20
"""More than this is one mistake made many times."""

PROGRESS_ROWS = 1000

Progress = Callable[[int, int, int], None]
"""Called with the rows read, the bytes read and the bytes there are."""


@dataclass(frozen=True)
class Survey:
    """What the data is."""

    files: tuple[Path, ...]
    format: str
    rows_by_file: tuple[int, ...]
    labels: tuple[str, ...]
    sha256: str | None
    bytes: int

    @property
    def rows(self) -> int:
        """Rows over all files, or as many as were looked at."""
        return sum(self.rows_by_file)


def survey(
    where: str,
    fmt: str,
    task: str,
    key: str,
    *,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Survey:
    """Read everything once (or `limit` rows). Raises InputError with all the faults."""
    files = resolve(where, key=key)
    if fmt != "auto" and fmt not in FORMATS_OF_TASK[task]:
        fitting = " or ".join(FORMATS_OF_TASK[task])
        raise InputError([Fault("data.format", f"{fmt} does not fit {task}", f"Use {fitting}.")])
    looking = _Pass(files, fmt, task, limit, progress)
    looking.run()
    if not looking.rows and not looking.faults.count:
        named = ", ".join(map(str, files[:3])) + ", ..." * (len(files) > 3)
        raise InputError([Fault(key, f"no rows in {named}", "Name a file that has some.")])
    looking.faults.raise_any()
    return Survey(
        files=files,
        format=looking.format,
        rows_by_file=tuple(looking.by_file),
        labels=sort_labels(looking.labels),
        sha256=looking.digest.hexdigest() if limit is None else None,
        bytes=looking.bytes_all,
    )


def check_train_labels(train: Survey) -> list[Fault]:
    """A classifier needs two classes to tell apart."""
    if train.format != "classification" or len(train.labels) > 1:
        return []
    problem = f"every one of {train.rows:,} rows has the label {train.labels[0]!r}"
    return [Fault("data.train", problem, "A classifier needs two labels or more.")]


def check_eval_labels(train: Survey, evaluation: Survey) -> list[Fault]:
    """Labels that evaluation asks for and training never shows."""
    unknown = [label for label in evaluation.labels if label not in set(train.labels)]
    if not unknown:
        return []
    named = ", ".join(map(repr, unknown[:8])) + ", ..." * (len(unknown) > 8)
    problem = f"labels that the training data lacks: {named}"
    return [Fault("data.eval", problem, "Add rows of them to data.train, or remove them here.")]


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The order that gives each label its number: whole numbers by value, anything else by name."""
    try:
        return tuple(sorted(labels := set(labels), key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))


class _Faults:
    """The first faults, and how many there were."""

    def __init__(self) -> None:
        self.kept: list[Fault] = []
        self.count = 0

    def add(self, fault: Fault) -> None:
        self.count += 1
        if self.count <= MOST_FAULTS:
            self.kept.append(fault)

    def raise_any(self) -> None:
        if more := self.count - len(self.kept):
            tail = Fault("data", f"and {more:,} more faults", "Mend these first.")
            raise InputError([*self.kept, tail])
        if self.kept:
            raise InputError(self.kept)


class _Pass:
    """One pass over the files, and what it has gathered."""

    def __init__(
        self,
        files: tuple[Path, ...],
        fmt: str,
        task: str,
        limit: int | None,
        progress: Progress | None,
    ) -> None:
        self.files, self.format, self.task = files, fmt, task
        self.limit, self.progress = limit, progress
        self.faults, self.labels = _Faults(), set[str]()
        self.by_file, self.rows = [0] * len(files), 0
        self.digest, self.bytes_done = hashlib.sha256(), 0
        self.bytes_all = sum(path.stat().st_size for path in files)

    def run(self) -> None:
        for index, path in enumerate(self.files):
            for row in read_rows(path, report=self.faults.add, seen=self._see):
                self.rows += 1
                self.by_file[index] += 1
                self._take(row)
                if self.progress and self.rows % PROGRESS_ROWS == 0:
                    self.progress(self.rows, self.bytes_done, self.bytes_all)
                if self.rows == self.limit:
                    return
        if self.progress:
            self.progress(self.rows, self.bytes_done, self.bytes_all)

    def _see(self, chunk: memoryview) -> None:
        self.digest.update(chunk)
        self.bytes_done += len(chunk)

    def _take(self, row: Row) -> None:
        # The first row that has a format sets it for all: a file of two formats is a mistake.
        if self.format == "auto":
            self.format = detect(row.values, task=self.task) or "auto"
        try:
            example = read_example(row, self.format, task=self.task)
        except InputError as wrong:
            for fault in wrong.faults:
                self.faults.add(fault)
            return
        if isinstance(example, Labelled):
            self.labels.add(example.label)
