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

from slora.names import entries

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]


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
        hashed = hashlib.sha256(repr(self.shape).encode())
        hashed.update(self.positions.numpy().tobytes())
        return hashed.hexdigest()


@dataclass(frozen=True, eq=False)
class Entries(Mask):
    """Any set of entries, by their positions: `chosen`, as `positions` wants them."""

    shape: tuple[int, int]
    chosen: Tensor

    @property
    def nnz(self) -> int:
        return self.chosen.numel()

    @property
    def positions(self) -> Tensor:
        return self.chosen


@dataclass(frozen=True, eq=False)
class Block(Mask):
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


def random_mask(*, seed: int, name: str, shape: tuple[int, int], density: float) -> Entries:
    """A uniformly drawn set of `entries(shape, density)` entries, the same wherever it is drawn.

    Needs memory in proportion to the mask, never to the matrix, up to a density of one half.
    """
    size, wanted = shape[0] * shape[1], entries(shape, density)
    key = f"{seed}\0{name}\0{shape[0]}x{shape[1]}\0random"
    return Entries(shape, draw(wanted, size, key=key))


def draw(wanted: int, size: int, *, key: str) -> Tensor:
    """`wanted` different numbers below `size`, int64, ascending: the same for the same key."""
    digest = hashlib.sha256(key.encode()).digest()
    stream = np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64))
    return torch.from_numpy(_distinct(stream, size, wanted))


def _distinct(stream: np.random.Philox, size: int, wanted: int) -> Numbers:
    """`wanted` different numbers below `size`, ascending, every such set equally likely."""
    if 2 * wanted > size:
        # Drawing most of a set is drawing what to leave out.
        left_out = np.ones(size, dtype=bool)
        if wanted < size:
            left_out[_distinct(stream, size, size - wanted)] = False
        return np.flatnonzero(left_out).astype(np.int64)
    drawn = np.empty(0, dtype=np.int64)
    while drawn.size < wanted:
        # Collisions cost a few draws more: as many as are expected, and a margin for the spread.
        missing = wanted - drawn.size
        more = int(missing * (1 + 0.5 * wanted / size)) + 4 * int(missing**0.5) + 8
        fresh = _numbers(stream, more, below=size)
        drawn = _sorted_once(np.concatenate((drawn, fresh)) if drawn.size else fresh)
        del fresh
    # Any subset of a uniformly drawn set is as likely as any other of its size.
    dropped: set[int] = set()
    while len(dropped) < drawn.size - wanted:
        dropped.add(int(stream.random_raw()) % drawn.size)
    return np.delete(drawn, sorted(dropped))


def _numbers(stream: np.random.Philox, count: int, *, below: int) -> Numbers:
    # A remainder of 64 random bits is uniform to within size / 2**64.
    raw = stream.random_raw(count)
    np.remainder(raw, np.uint64(below), out=raw)
    numbers: Numbers = raw.view(np.int64)
    return numbers


def _sorted_once(numbers: Numbers) -> Numbers:
    """Ascending and without repeats; sorts in place. A third of `np.unique`'s time and memory."""
    numbers.sort()
    kept = np.ones(numbers.size, dtype=bool)
    np.not_equal(numbers[1:], numbers[:-1], out=kept[1:])
    return numbers[kept]
