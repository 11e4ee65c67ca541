"""Stream the training or the evaluation rows of a data set in the order of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import IterableDataset

from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.files import read_rows
from jobs.inspect.datasets.heldout import is_held_out

SHUFFLE_BUFFER_ROWS = 100_000
"""Size of the shuffle buffer, which is held in memory."""


@dataclass(frozen=True)
class RowSource:
    """The rows of one side of the split: files, format and labels."""

    files: tuple[Path, ...]
    format: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """The column of each field that has another name, as the scan found them."""
    labels: tuple[str, ...] = ()
    eval_fraction: float | None = None
    split: Literal["train", "eval"] = "train"
    seed: int = 0
    """Seed of the split. The order has a seed of its own."""

    def iter_rows(self, *, epoch: int = 0, shuffle_seed: int | None = None) -> Iterator[Row]:
        """Yield the rows of an epoch: in the order of the files, or shuffled by seed and epoch."""
        # With a list `datasets` shuffles the files too, not only the rows in its buffer.
        files = list(enumerate(map(str, self.files)))
        generator_args = {"source": self, "files": files}
        stream = IterableDataset.from_generator(_generate_rows, gen_kwargs=generator_args)
        if shuffle_seed is not None:
            stream = stream.shuffle(seed=shuffle_seed, buffer_size=SHUFFLE_BUFFER_ROWS)
            stream.set_epoch(epoch)
        for item in stream:
            yield item["row"]

    def has_row(self, file: int, number: int) -> bool:
        """Return whether a row (index of its file, number in it) is on this side of the split."""
        if self.eval_fraction is None:
            return True
        held_out = is_held_out(file, number, fraction=self.eval_fraction, seed=self.seed)
        return held_out == (self.split == "eval")


def _generate_rows(source: RowSource, files: list[tuple[int, str]]) -> Iterator[dict[str, Any]]:
    for file, path in files:
        for number, row in enumerate(read_rows(Path(path))):
            if source.has_row(file, number):
                yield {"row": row}
