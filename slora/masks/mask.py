"""Masks: the entries of a matrix that may change, in two representations, and the random draw.

O, I: the matrix's rows and columns. Z: entries of the mask.

A random mask depends only on (seed, layer name, shape): the seed regenerates it on any machine, so
no index is ever transferred. The bits come from NumPy's Philox counter generator, whose raw stream
its specification fixes; the samplers of torch and NumPy promise no such stability between
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
    """The selected entries of one `[O, I]` matrix; values on the mask follow `positions`."""

    shape: tuple[int, int]

    @property
    @abstractmethod
    def nnz(self) -> int:
        """Return the number of selected entries."""

    @property
    @abstractmethod
    def positions(self) -> Tensor:
        """Return the distinct positions, int64 `[Z]`, row-major (`row * I + column`), ascending."""

    def digest(self) -> str:
        """Return the SHA-256 of shape and positions: equal masks have equal digests."""
        hasher = hashlib.sha256(repr(tuple(self.shape)).encode())
        hasher.update(self.positions.numpy().tobytes())
        return hasher.hexdigest()


@dataclass(frozen=True, eq=False)
class EntryMask(Mask):
    """Any set of entries; `entry_positions` is as `positions` requires."""

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
    """The entries in the intersection of selected rows and columns: rows, columns, or a block.

    `rows`, `columns`: int64, ascending, distinct. An update on it has at most the rank of the
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
    """Return a uniformly drawn set of `count_entries(shape, density)` entries, equal everywhere.

    The memory is proportional to the mask, not to the matrix, up to a density of one half.
    """
    size, count = shape[0] * shape[1], count_entries(shape, density)
    key = f"{seed}\0{name}\0{shape[0]}x{shape[1]}\0random"
    return EntryMask(shape, draw_distinct(count, size, key=key))


def draw_distinct(count: int, size: int, *, key: str) -> Tensor:
    """Return `count` distinct numbers below `size`, int64, ascending: the same for the same key."""
    digest = hashlib.sha256(key.encode()).digest()
    stream = np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64))
    return torch.from_numpy(_sample_distinct(stream, size, count))


def _sample_distinct(stream: np.random.Philox, size: int, count: int) -> IntArray:
    """Return `count` distinct numbers below `size`, ascending; every such set is equally likely."""
    if 2 * count > size:
        # To draw most of a set, draw the numbers to exclude.
        selected = np.ones(size, dtype=bool)
        if count < size:
            selected[_sample_distinct(stream, size, size - count)] = False
        return np.flatnonzero(selected).astype(np.int64)
    sample = np.empty(0, dtype=np.int64)
    while sample.size < count:
        # Draw the expected number of collisions in addition, and a margin for their variance.
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
    """Sort in place and remove repeats, in a third of the time and memory of `np.unique`."""
    numbers.sort()
    is_first = np.ones(numbers.size, dtype=bool)
    np.not_equal(numbers[1:], numbers[:-1], out=is_first[1:])
    return numbers[is_first]
