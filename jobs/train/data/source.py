"""Stream the samples of the training or the evaluation rows in the order of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from datasets import IterableDataset

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.files import read_rows
from jobs.inspect.datasets.formats import read_example
from jobs.inspect.datasets.heldout import is_held_out
from jobs.train.data.token_table import open_table
from jobs.train.data.tokenization import Encoder, Sample

SHUFFLE_BUFFER_ROWS = 100_000
"""Size of the shuffle buffer, which is held in memory."""

Split = Literal["train", "eval"]


class SampleSource(Protocol):
    """The samples of one side of a split."""

    @property
    def split(self) -> Split:
        """Return the side, for messages."""
        ...

    def iter_rows_of_samples(
        self, *, epoch: int = 0, shuffle_seed: int | None = None
    ) -> Iterator[tuple[Sample, ...]]:
        """Yield the samples of an epoch, those of one row or piece at a time: in the order of the
        files, or shuffled by seed and epoch.
        """
        ...


@dataclass(frozen=True)
class RowSource:
    """The rows of one side of the split: files, format and labels."""

    files: tuple[Path, ...]
    format: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """The column of each field that has another name, as the scan found them."""
    labels: tuple[str, ...] = ()
    eval_fraction: float | None = None
    split: Split = "train"
    seed: int = 0
    """Seed of the split. The order has a seed of its own."""
    skips_bad_rows: bool = False
    """Leave out lines that are no rows."""
    label_kind: str = "one"
    """data.labels."""

    def iter_rows(self, *, epoch: int = 0, shuffle_seed: int | None = None) -> Iterator[Row]:
        """Yield the rows of an epoch: in the order of the files, or shuffled by seed and epoch."""
        # With a list `datasets` shuffles the files too, not only the rows in its buffer.
        files = list(enumerate(map(str, self.files)))
        arguments = {"source": self, "files": files}
        yield from _iter_shuffled(_generate_rows, arguments, epoch, shuffle_seed)

    def has_row(self, file: int, number: int) -> bool:
        """Return whether a row (index of its file, number in it) is on this side of the split."""
        if self.eval_fraction is None:
            return True
        held_out = is_held_out(file, number, fraction=self.eval_fraction, seed=self.seed)
        return held_out == (self.split == "eval")


@dataclass(frozen=True)
class StreamedSamples:
    """Rows that are tokenised as they are read, each time again."""

    rows: RowSource
    encoder: Encoder
    task: str

    @property
    def split(self) -> Split:
        """Return the side of the rows."""
        return self.rows.split

    def iter_rows_of_samples(
        self, *, epoch: int = 0, shuffle_seed: int | None = None
    ) -> Iterator[tuple[Sample, ...]]:
        """Yield the samples of each row. Raise InputError for a bad one unless they are skipped."""
        for row in self.rows.iter_rows(epoch=epoch, shuffle_seed=shuffle_seed):
            try:
                example = read_example(
                    row,
                    self.rows.format,
                    task=self.task,
                    columns=self.rows.columns,
                    label_kind=self.rows.label_kind,
                )
                samples = self.encoder(example, where=row.location)
            except InputError:
                if not self.rows.skips_bad_rows:
                    raise
                continue
            yield samples


@dataclass(frozen=True)
class TableSamples:
    """Rows that were tokenised before, in a table."""

    folder: Path
    rows: RowSource

    @property
    def split(self) -> Split:
        """Return the side of the rows."""
        return self.rows.split

    def iter_rows_of_samples(
        self, *, epoch: int = 0, shuffle_seed: int | None = None
    ) -> Iterator[tuple[Sample, ...]]:
        """Yield one sample at a time, without reading the rows."""
        arguments = {"source": self, "files": list(range(len(self.rows.files)))}
        table = open_table(self.folder)
        for index in _iter_shuffled(_generate_indices, arguments, epoch, shuffle_seed):
            yield (table[index],)


def _iter_shuffled(
    generate: Any, arguments: dict[str, Any], epoch: int, shuffle_seed: int | None
) -> Iterator[Any]:
    stream = IterableDataset.from_generator(generate, gen_kwargs=arguments)
    if shuffle_seed is not None:
        stream = stream.shuffle(seed=shuffle_seed, buffer_size=SHUFFLE_BUFFER_ROWS)
        stream.set_epoch(epoch)
    for item in stream:
        yield item["row"]


def _generate_rows(source: RowSource, files: list[tuple[int, str]]) -> Iterator[dict[str, Any]]:
    def skip(fault: Fault) -> None:
        if not (source.skips_bad_rows and fault.is_of_row):
            raise InputError([fault])

    for file, path in files:
        for number, row in enumerate(read_rows(Path(path), on_fault=skip)):
            if source.has_row(file, number):
                yield {"row": row}


def _generate_indices(source: TableSamples, files: list[int]) -> Iterator[dict[str, int]]:
    for file in files:
        rows = source.rows
        split = None if rows.eval_fraction is None else (rows.split, rows.eval_fraction, rows.seed)
        for index in _list_indices(source.folder, file, split):
            yield {"row": index}


@lru_cache(maxsize=64)
def _list_indices(
    folder: Path, file: int, split: tuple[Split, float, int] | None
) -> tuple[int, ...]:
    """Return the samples of a file that are on one side of a split by share and seed."""
    rows = open_table(folder).list_rows()
    own = np.flatnonzero(rows[:, 0] == file)
    if split is None:
        return tuple(own.tolist())
    side, fraction, seed = split
    return tuple(
        int(index)
        for index in own
        if is_held_out(file, int(rows[index, 1]), fraction=fraction, seed=seed) == (side == "eval")
    )
