"""Random masks: which entries may move, from (seed, layer's name, shape) and nothing else.

A seed regenerates a mask on any machine, so no index ever travels. The bits come from NumPy's
Philox counter generator, whose raw stream is fixed by its specification; torch's and NumPy's
samplers promise no such thing between releases.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slora.names import entries


@dataclass(frozen=True)
class Mask:
    """The chosen entries of one `[O, I]` matrix.

    `positions`: int64 `[nnz]`, row-major (`row * I + column`), ascending, no entry twice.
    """

    shape: tuple[int, int]
    positions: Tensor

    @property
    def nnz(self) -> int:
        """How many entries may move."""
        return self.positions.numel()

    def digest(self) -> str:
        """SHA-256 of shape and positions: equal masks, equal digests."""
        hashed = hashlib.sha256(repr(self.shape).encode())
        hashed.update(self.positions.numpy().tobytes())
        return hashed.hexdigest()


def random_mask(*, seed: int, name: str, shape: tuple[int, int], density: float) -> Mask:
    """A uniformly drawn set of `entries(shape, density)` entries, the same wherever it is drawn.

    Needs memory in proportion to the mask, never to the matrix, up to a density of one half.
    """
    size, wanted = shape[0] * shape[1], entries(shape, density)
    key = hashlib.sha256(f"{seed}\0{name}\0{shape[0]}x{shape[1]}\0random".encode()).digest()
    stream = np.random.Philox(key=np.frombuffer(key[:16], dtype=np.uint64))
    return Mask(shape, torch.from_numpy(_distinct(stream, size, wanted)))


def _distinct(
    stream: np.random.Philox, size: int, wanted: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
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
        # A remainder of 64 random bits is uniform to within size / 2**64.
        fresh = (stream.random_raw(more) % np.uint64(size)).astype(np.int64)
        drawn = np.unique(np.concatenate((drawn, fresh)))
    # Any subset of a uniformly drawn set is as likely as any other of its size.
    dropped: set[int] = set()
    while len(dropped) < drawn.size - wanted:
        dropped.add(int(stream.random_raw()) % drawn.size)
    return np.delete(drawn, sorted(dropped))
