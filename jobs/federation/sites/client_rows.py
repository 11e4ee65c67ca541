"""The samples of a client for its feed, from the table of all rows of a federation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from jobs.train.data.source import Split
from jobs.train.data.token_table import open_table
from jobs.train.data.tokenization import Sample

Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class ClientSamples:
    """One client's rows as a source of its feed."""

    folder: Path
    """The table of all rows."""
    rows_by_file: tuple[int, ...]
    numbers: Numbers
    """The client's rows, counted over all files."""

    @property
    def split(self) -> Split:
        """Return the side of the split that clients train on."""
        return "train"

    def iter_rows_of_samples(
        self, *, epoch: int = 0, shuffle_seed: int | None = None
    ) -> Iterator[tuple[Sample, ...]]:
        """Yield the rows of an epoch in file order, or in an order given by seed and epoch."""
        order = np.arange(len(self.numbers))
        if shuffle_seed is not None:
            # Raw numbers of a counter generator are the same in every NumPy release, samples are
            # not.
            stream = np.random.Philox(key=np.array([shuffle_seed, epoch], dtype=np.uint64))
            order = np.argsort(stream.random_raw(len(self.numbers)), kind="stable")
        table = open_table(self.folder)
        global_numbers = _number_samples(self.folder, self.rows_by_file)
        for number in np.asarray(self.numbers)[order]:
            first, last = (
                int(np.searchsorted(global_numbers, number, side)) for side in ("left", "right")
            )
            yield tuple(table[index] for index in range(first, last))


@lru_cache(maxsize=4)
def _number_samples(folder: Path, rows_by_file: tuple[int, ...]) -> Numbers:
    """Return the row of each sample, counted over all files."""
    rows = open_table(folder).list_rows()
    offsets = np.array([0, *accumulate(rows_by_file)], dtype=np.int64)
    return np.asarray(offsets[rows[:, 0]] + rows[:, 1])
