"""A table of tokenised rows on disk: written once, then memory-mapped by every process.

<cache>/tokens/<key>/tokens.i32    all tokens, one sample after the other
                    /learnt.u8     1 for each token that is a target
                    /labels.f64    [samples, K], where rows have labels and not tokens to learn
                    /samples.i64   [samples, 7]: begin, end, file, row, truncated, kind of target,
                                   start of the second of two texts
                    /tally.json    written last
<cache>/tokens/<key>.lock          locked while the table is written
"""

from __future__ import annotations

import array
import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jobs.plan.token_tally import SEAL, TokenTally
from jobs.spec.tasks import TargetKind
from jobs.train.data.tokenization import IGNORE_INDEX, Sample

TOKENS, LEARNT, LABELS, SAMPLES = "tokens.i32", "learnt.u8", "labels.f64", "samples.i64"
COLUMNS = 7
KINDS: tuple[TargetKind, ...] = ("tokens", "completion", "class", "classes", "number")
"""A kind is stored as its place in this list."""


class TableWriter:
    """Appends samples to the files of a new table."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder, self._length = folder, 0
        self._tokens: BinaryIO = (folder / TOKENS).open("wb")
        self._learnt: BinaryIO = (folder / LEARNT).open("wb")
        self._labels: BinaryIO = (folder / LABELS).open("wb")
        self._samples: BinaryIO = (folder / SAMPLES).open("wb")

    def append(self, sample: Sample, *, file: int, row: int) -> None:
        """Append a sample of a row: the number of its file, and its own number in it."""
        ids, begin = sample.input_ids, self._length
        if sample.kind == "tokens":
            self._learnt.write(bytes(label != IGNORE_INDEX for label in sample.labels))
        elif sample.kind == "completion":
            # The tokens of both sides, of which the decoder's are learnt.
            self._learnt.write(bytes(len(ids)) + b"\x01" * len(sample.labels))
            ids = (*ids, *map(int, sample.labels))
        else:
            _write_numbers(self._labels, "d", sample.labels)
        self._length += len(ids)
        _write_numbers(self._tokens, "i", ids)
        kind = KINDS.index(sample.kind)
        columns = (begin, self._length, file, row, sample.truncated, kind, sample.second)
        _write_numbers(self._samples, "q", columns)

    def close(self, tally: TokenTally | None = None) -> None:
        """Close the files, and with a tally seal the table."""
        for file in (self._tokens, self._learnt, self._labels, self._samples):
            file.close()
        if tally is not None:
            (self._folder / SEAL).write_text(json.dumps(tally.to_json()))


class TokenTable:
    """A sealed table, read through the page cache."""

    def __init__(self, folder: Path) -> None:
        self._tokens = _map_numbers(folder / TOKENS, np.int32)
        self._learnt = _map_numbers(folder / LEARNT, np.uint8)
        self._samples = _map_numbers(folder / SAMPLES, np.int64).reshape(-1, COLUMNS)
        labels = _map_numbers(folder / LABELS, np.float64)
        self._labels = labels.reshape(len(self), -1) if labels.size else labels

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        begin, end, _, _, truncated, number, second = (int(value) for value in self._samples[index])
        ids, kind = self._tokens[begin:end], KINDS[number]
        if kind not in ("tokens", "completion"):
            labels = self._labels[index]
            numbers = labels if kind == "number" else labels.astype(np.int64)
            return Sample(tuple(ids.tolist()), tuple(numbers.tolist()), truncated, kind, second)
        is_learnt = self._learnt[begin:end] == 1
        if kind == "completion":
            prompt, answer = ids[~is_learnt].tolist(), ids[is_learnt].tolist()
            return Sample(tuple(prompt), tuple(answer), truncated, kind)
        masked = np.where(is_learnt, ids, IGNORE_INDEX)
        return Sample(tuple(ids.tolist()), tuple(masked.tolist()), truncated)

    def list_rows(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return [samples, 2]: the number of each sample's file, and of its row in the file."""
        return np.asarray(self._samples[:, 2:4])

    def count_targets(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the number of targets of each sample."""
        if not len(self._learnt):
            labels = self._labels.reshape(len(self), -1)
            return np.asarray((labels != IGNORE_INDEX).sum(axis=1), np.int64)
        sums = np.concatenate([[0], np.cumsum(self._learnt, dtype=np.int64)])
        return np.asarray(sums[self._samples[:, 1]] - sums[self._samples[:, 0]])


@lru_cache(maxsize=16)
def open_table(folder: Path) -> TokenTable:
    """Return the sealed table in a folder; each process maps it once."""
    return TokenTable(folder)


def _write_numbers(file: BinaryIO, code: str, numbers: Any) -> None:
    values = array.array(code, numbers)
    if sys.byteorder == "big":
        values.byteswap()
    file.write(values.tobytes())


def _map_numbers(path: Path, dtype: Any) -> np.ndarray[Any, Any]:
    little = np.dtype(dtype).newbyteorder("<")
    # An empty file can't be mapped.
    return np.memmap(path, little, "r") if path.stat().st_size else np.zeros(0, little)
