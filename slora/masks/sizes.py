"""Compute how many entries a mask has, and the rank at which its hand-off is exact. No torch.

O, I: rows and columns of the matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from slora.errors import BadMask
from slora.layers.patterns import count_entries
from slora.layers.shapes import count_experts, get_expert_shape

STRUCTURES = ("rows", "columns", "blocks")
"""Masks whose updates have a limited rank; any other mask is an arbitrary set of entries."""
FactorMaskKind = Literal["balanced", "random", "lines"]
"""How the trained entries of the factors of a low-rank update are drawn: see `factor_mask`."""

Shape = tuple[int, int]


def compute_block_sides(structure: str, shape: Shape, *, density: float, rank: int | None) -> Shape:
    """Return the number of rows and columns of a structured mask.

    The density determines them; a `rank` limits them so that the update stays within it and the
    hand-off at that rank is exact.
    """
    count_entries(shape, density)  # raises BadMask for an impossible density
    rows, columns = shape
    max_side = rank or rows + columns
    if structure == "rows":
        return min(_count_share(rows, density), max_side), columns
    if structure == "columns":
        return rows, min(_count_share(columns, density), max_side)
    if structure != "blocks":
        raise BadMask(f"{structure!r} is not a mask structure: use {', '.join(STRUCTURES)}")
    row_count, column_count = _count_share(rows, density**0.5), _count_share(columns, density**0.5)
    if min(row_count, column_count) <= max_side:
        return row_count, column_count
    # A short side along the matrix's smaller dimension allows the longest other side.
    long_side = max(1, round(count_entries(shape, density) / max_side))
    return (
        (max_side, min(columns, long_side)) if rows <= columns else (min(rows, long_side), max_side)
    )


def count_mask_entries(mask: str, shape: Shape, *, density: float, rank: int | None) -> int:
    """Return the entries of a mask of any strategy, if layers do not compete for them."""
    if mask not in STRUCTURES:
        return count_entries(shape, density)
    rows, columns = compute_block_sides(mask, shape, density=density, rank=rank)
    return rows * columns


def compute_exact_rank(mask: str, shape: Shape, *, density: float, rank: int | None) -> int:
    """Return the smallest rank at which the hand-off of such a mask is exact for any values."""
    if mask not in STRUCTURES:
        return min(*get_expert_shape(shape), count_entries(shape, density))
    return min(compute_block_sides(mask, shape, density=density, rank=rank))


def count_trained_factors(
    kind: FactorMaskKind, shape: Sequence[int], *, rank: int, density: float
) -> tuple[int, int]:
    """Return the trained entries of A and of B under masks of this kind, in all experts."""
    (rows, columns), experts = get_expert_shape(shape), count_experts(shape)
    a, b = (count_side_entries(kind, side, rank, density) for side in (columns, rows))
    return experts * a, experts * b


def count_side_entries(kind: FactorMaskKind, features: int, rank: int, density: float) -> int:
    """Return the trained entries of one factor, of `features` x `rank`."""
    if kind == "lines":
        return count_factor_lines(features, density) * rank
    return count_entries((features, rank), density)


def count_factor_lines(features: int, density: float) -> int:
    """Return the columns of A, or the rows of B, that are trained whole."""
    return count_entries((features, 1), density)


def _count_share(count: int, share: float) -> int:
    return min(count, max(1, round(count * share)))
