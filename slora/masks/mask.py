"""Masks: which entries of a matrix may move. The two forms they have, and the random draw.

O, I: the matrix's rows and columns. Z: entries of the mask.

A random mask comes from (seed, layer's name, shape) and nothing else: a seed regenerates it on any
machine, so no index ever travels. The bits come from NumPy's Philox counter generator, whose raw
stream is fixed by its specification; torch's and NumPy's samplers promise no such thing between
releases.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slora.layers.patterns import count_entries

IntArray = np.ndarray[tuple[int], np.dtype[np.int64]]


class Mask(ABC):
    """The chosen entries of one `[O, I]` matrix; values that belong to them follow `positions`."""

    shape: tuple[int, int]

    @property
    @abstractmethod
    def nnz(self) -> int:
        """How many entries may move."""

    @property
    @abstractmethod
    def positions(self) -> Tensor:
        """int64 `[Z]`, row-major (`row * I + column`), ascending, no entry twice."""

    def digest(self) -> str:
        """SHA-256 of shape and positions: equal masks, equal digests."""
        hasher = hashlib.sha256(repr(self.shape).encode())
        hasher.update(self.positions.numpy().tobytes())
        return hasher.hexdigest()


@dataclass(frozen=True, eq=False)
class EntryMask(Mask):
    """Any set of entries, by their positions: `chosen`, as `positions` wants them."""

    shape: tuple[int, int]
    entry_positions: Tensor

    @property
    def nnz(self) -> int:
        return self.entry_positions.numel()

    @property
    def positions(self) -> Tensor:
        return self.entry_positions


@dataclass(frozen=True, eq=False)
class BlockMask(Mask):
    """The entries in which chosen rows and chosen columns meet: whole rows, whole columns, or both.

    `rows`, `columns`: int64, ascending, none twice. An update on it has at most the rank of the
    smaller of the two counts.
    """

    shape: tuple[int, int]
    rows: Tensor
    columns: Tensor

    @property
    def nnz(self) -> int:
        return self.rows.numel() * self.columns.numel()

    @property
    def positions(self) -> Tensor:
        return (self.rows[:, None] * self.shape[1] + self.columns).flatten()


def draw_random_mask(*, seed: int, name: str, shape: tuple[int, int], density: float) -> EntryMask:
    """A uniformly drawn set of `entries(shape, density)` entries, the same wherever it is drawn.

    Needs memory in proportion to the mask, never to the matrix, up to a density of one half.
    """
    size, count = shape[0] * shape[1], count_entries(shape, density)
    key = f"{seed}\0{name}\0{shape[0]}x{shape[1]}\0random"
    return EntryMask(shape, draw_distinct(count, size, key=key))


def draw_distinct(count: int, size: int, *, key: str) -> Tensor:
    """`wanted` different numbers below `size`, int64, ascending: the same for the same key."""
    digest = hashlib.sha256(key.encode()).digest()
    stream = np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64))
    return torch.from_numpy(_sample_distinct(stream, size, count))


def _sample_distinct(stream: np.random.Philox, size: int, count: int) -> IntArray:
    """`wanted` different numbers below `size`, ascending, every such set equally likely."""
    if 2 * count > size:
        # Drawing most of a set is drawing what to leave out.
        selected = np.ones(size, dtype=bool)
        if count < size:
            selected[_sample_distinct(stream, size, size - count)] = False
        return np.flatnonzero(selected).astype(np.int64)
    sample = np.empty(0, dtype=np.int64)
    while sample.size < count:
        # Collisions cost a few draws more: as many as are expected, and a margin for the spread.
        missing = count - sample.size
        batch_size = int(missing * (1 + 0.5 * count / size)) + 4 * int(missing**0.5) + 8
        candidates = _draw_numbers(stream, batch_size, below=size)
        sample = _sort_unique(np.concatenate((sample, candidates)) if sample.size else candidates)
        del candidates
    # Any subset of a uniformly drawn set is as likely as any other of its size.
    surplus: set[int] = set()
    while len(surplus) < sample.size - count:
        surplus.add(int(stream.random_raw()) % sample.size)
    return np.delete(sample, sorted(surplus))


def _draw_numbers(stream: np.random.Philox, count: int, *, below: int) -> IntArray:
    # A remainder of 64 random bits is uniform to within size / 2**64.
    raw = stream.random_raw(count)
    np.remainder(raw, np.uint64(below), out=raw)
    numbers: IntArray = raw.view(np.int64)
    return numbers


def _sort_unique(numbers: IntArray) -> IntArray:
    """Ascending and without repeats; sorts in place. A third of `np.unique`'s time and memory."""
    numbers.sort()
    is_first = np.ones(numbers.size, dtype=bool)
    np.not_equal(numbers[1:], numbers[:-1], out=is_first[1:])
    return numbers[is_first]
