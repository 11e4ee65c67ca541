"""A client's rows, as a feed of the loop takes them. A file is read once, and only if it is needed.

A site holds the rows of the clients that it has played in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np

from jobs.federation.partition import Partition, make_partition
from jobs.inspect.datasets.files import Row, read_rows
from jobs.train.data.source import RowSource
from jobs.train.request import Request


class ClientRows:
    """The training rows of a federation, by client."""

    def __init__(
        self, files: tuple[Path, ...], rows_by_file: tuple[int, ...], partition: Partition
    ) -> None:
        """`by_file`: rows of each file."""
        self._files, self._partition = files, partition
        self._offsets = np.array([0, *accumulate(rows_by_file)], dtype=np.int64)
        self._read_cached = lru_cache(maxsize=None)(self._read_file)

    def read_client(self, client: int) -> tuple[Row, ...]:
        """In the order of the files."""
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
        """The rows of an epoch: as they lie in the files, or in an order of seed and epoch."""
        if shuffle_seed is None:
            yield from self.client_rows
            return
        # A counter generator's raw numbers are the same in every release; samplers promise nothing.
        stream = np.random.Philox(key=np.array([shuffle_seed, epoch], dtype=np.uint64))
        for index in np.argsort(stream.random_raw(len(self.client_rows)), kind="stable"):
            yield self.client_rows[int(index)]


def make_request_partition(request: Request) -> Partition:
    """The request's clients: the same wherever it is asked. Raises InputError."""
    spec, section = request.spec, request.federation
    assert section is not None
    return make_partition(
        request.train_data.files,
        section,
        fmt=request.train_data.format,
        task=spec.model.task,
        eval_fraction=spec.data.eval_fraction if request.eval_data is None else None,
        seed=spec.train.seed,
    )
