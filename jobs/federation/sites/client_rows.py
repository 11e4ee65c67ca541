"""Read the rows of a client for its feed. Each file is read at most once, when first needed.

A site keeps the files of all clients that it has trained in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np

from jobs.federation.partition import Partition
from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.files import read_rows
from jobs.train.data.source import RowSource


class ClientRows:
    """The training rows of a federation, by client."""

    def __init__(
        self, files: tuple[Path, ...], rows_by_file: tuple[int, ...], partition: Partition
    ) -> None:
        """`rows_by_file` has the number of rows of each file."""
        self._files, self._partition = files, partition
        self._offsets = np.array([0, *accumulate(rows_by_file)], dtype=np.int64)
        self._read_cached = lru_cache(maxsize=None)(self._read_file)

    def read_client(self, client: int) -> tuple[Row, ...]:
        """Return the rows of a client, in the order of the files."""
        numbers = self._partition.rows[client]
        files = np.searchsorted(self._offsets, numbers, side="right") - 1
        return tuple(
            self._read_cached(int(file))[int(number - self._offsets[file])]
            for file, number in zip(files, numbers, strict=True)
        )

    def _read_file(self, file: int) -> list[Row]:
        return list(read_rows(self._files[file]))


@dataclass(frozen=True)
class ClientSource(RowSource):
    """One client's rows as a source of its feed."""

    client_rows: tuple[Row, ...] = ()

    def iter_rows(self, *, epoch: int = 0, shuffle_seed: int | None = None) -> Iterator[Row]:
        """Yield the rows of an epoch in file order, or in an order given by seed and epoch."""
        if shuffle_seed is None:
            yield from self.client_rows
            return
        # Raw numbers of a counter generator are the same in every NumPy release, samples are not.
        stream = np.random.Philox(key=np.array([shuffle_seed, epoch], dtype=np.uint64))
        for index in np.argsort(stream.random_raw(len(self.client_rows)), kind="stable"):
            yield self.client_rows[int(index)]
