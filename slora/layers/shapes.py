"""The shape of a layer as one matrix: a linear layer's own, or fused experts' on top of each other.

O, I: rows and columns of one expert's matrix. E: experts. R: the rank. No torch.

Masks, values and scores treat fused experts as one matrix `[E O, I]`: expert e owns the rows `e O`
to `(e + 1) O`. A low-rank update has a rank of R in each expert: A is `[E R, I]`, B is `[E O, R]`,
both ordered by expert. An ordinary layer is the case of one expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class LayerShape(tuple[int, int]):
    """(rows, columns) of a layer's matrix, and the number of experts that share its rows."""

    experts: int

    def __new__(cls, rows: int, columns: int, experts: int = 1) -> LayerShape:
        if experts < 1 or rows % experts:
            raise ValueError(f"{rows} rows can't be shared by {experts} experts")
        shape = super().__new__(cls, (rows, columns))
        shape.experts = experts
        return shape

    def __repr__(self) -> str:
        rows, columns = self
        pair = f"({rows // self.experts}, {columns})"
        return pair if self.experts == 1 else f"{self.experts} x {pair}"

    def __getnewargs__(self) -> Any:
        return (*self, self.experts)


def count_experts(shape: Sequence[int]) -> int:
    """Return the experts of a shape: one for a plain pair of numbers."""
    return getattr(shape, "experts", 1)


def get_expert_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return (O, I), the matrix of one expert: what a rank must fit."""
    return shape[0] // count_experts(shape), shape[1]


def get_factor_shapes(shape: Sequence[int], rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes of A and of B."""
    return (count_experts(shape) * rank, shape[1]), (shape[0], rank)


def count_factor_entries(shape: Sequence[int], rank: int) -> int:
    """Return the entries of A and B together."""
    return sum(rows * columns for rows, columns in get_factor_shapes(shape, rank))
