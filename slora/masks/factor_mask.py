"""Masks of the two factors of a low-rank update, drawn from a seed and the layer's name.

O, I: the layer's rows and columns. R: the rank. E: fused experts, each with masks of its own.

They depend on no value of a factor: ranks, clients and readers of a file draw the same ones, so no
index travels and none is stored. The bits are those of `slora.masks.mask`.

    random     any entries of A, and of B
    balanced   every feature (a column of A, a row of B) has as many entries as any other, and so
               does every rank, to within one
    lines      whole columns of A and whole rows of B
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slora.layers.shapes import count_experts, get_expert_shape
from slora.masks.mask import draw_distinct
from slora.masks.sizes import FactorMaskKind, count_factor_lines, count_side_entries


@dataclass(frozen=True)
class FactorMaskRule:
    """What determines the trained entries of A and of B in every layer."""

    kind: FactorMaskKind
    density: float
    """Share of the entries of each factor."""
    seed: int

    def draw(self, name: str, shape: Sequence[int], rank: int) -> tuple[Tensor, Tensor]:
        """Return the positions in A and in B, int64, row-major, ascending.

        `shape` is the layer's, `[O, I]` or `[E O, I]`. Raise BadMask for an impossible density.
        """
        rows, columns = get_expert_shape(shape)
        experts, a_parts, b_parts = count_experts(shape), [], []
        for expert in range(experts):
            label = name if experts == 1 else f"{name}[{expert}]"
            # Features in rows: those of A are its columns.
            a_IR = self._draw_side(f"{label}.a", columns, rank)
            a_RI = a_IR % rank * columns + a_IR // rank
            a_parts.append(np.sort(a_RI) + expert * rank * columns)
            b_parts.append(self._draw_side(f"{label}.b", rows, rank) + expert * rows * rank)
        return torch.from_numpy(np.concatenate(a_parts)), torch.from_numpy(np.concatenate(b_parts))

    def _draw_side(self, label: str, features: int, rank: int) -> _Positions:
        """Return positions in a matrix [features, R], ascending."""
        key = f"{self.seed}\0{label}\0{features}x{rank}\0factor {self.kind}"
        count = count_side_entries(self.kind, features, rank, self.density)
        if self.kind == "lines":
            lines = draw_distinct(count_factor_lines(features, self.density), features, key=key)
            return (lines.numpy()[:, None] * rank + np.arange(rank)).ravel()
        if self.kind == "balanced":
            return _draw_balanced(count, features, rank, key=key)
        return draw_distinct(count, features * rank, key=key).numpy()


_Positions = np.ndarray[tuple[int], np.dtype[np.int64]]


def _draw_balanced(count: int, features: int, rank: int, *, key: str) -> _Positions:
    """Return `count` positions, ascending: rows and columns have equal counts, to within one.

    Random orders of all ranks follow each other, and each feature takes its share of them in turn.
    Where a share spans two orders, the second one begins with ranks that the first did not give.
    """
    share, extra = divmod(count, features)
    counts = np.full(features, share)
    counts[draw_distinct(extra, features, key=f"{key}\0extra").numpy() if extra else []] += 1
    ranks = _shuffle_ranks(-(-count // rank), rank, key=key)
    ends = np.cumsum(counts)
    for order in range(1, len(ranks)):
        start = order * rank
        feature = int(np.searchsorted(ends, start, side="right"))
        first = int(ends[feature] - counts[feature])
        if first < start:
            given = ranks.ravel()[first:start]
            is_given = np.isin(ranks[order], given)
            ranks[order] = np.concatenate((ranks[order][~is_given], ranks[order][is_given]))
    rows = np.repeat(np.arange(features), counts)
    positions: _Positions = np.sort(rows * rank + ranks.ravel()[:count])
    return positions


def _shuffle_ranks(orders: int, rank: int, *, key: str) -> _Matrix:
    """Return random orders of 0 to R - 1, one in each row."""
    digest = hashlib.sha256(key.encode()).digest()
    stream = np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64))
    keys = stream.random_raw(orders * rank).reshape(orders, rank)
    return np.argsort(keys, axis=1, kind="stable")


_Matrix = np.ndarray[tuple[int, int], np.dtype[np.int64]]
