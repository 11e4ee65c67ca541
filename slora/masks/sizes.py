"""How many entries a mask has, and at which rank its hand-off is exact. Arithmetic only, no torch.

O, I: rows and columns of the matrix.
"""

from __future__ import annotations

from slora.errors import BadMask
from slora.layers.patterns import count_entries

STRUCTURES = ("rows", "columns", "blocks")
"""Masks whose updates have a rank of their own; all others are any set of entries."""

Shape = tuple[int, int]


def compute_block_sides(structure: str, shape: Shape, *, density: float, rank: int | None) -> Shape:
    """Rows and columns of a structured mask.

    As many as the density asks; with a `rank`, no more of them than keep the update within it, so
    that the hand-off at that rank is exact.
    """
    count_entries(shape, density)  # refuses what no mask can have
    rows, columns = shape
    max_side = rank or rows + columns
    if structure == "rows":
        return min(_count_share(rows, density), max_side), columns
    if structure == "columns":
        return rows, min(_count_share(columns, density), max_side)
    if structure != "blocks":
        raise BadMask(f"{structure!r} is no structure: use {', '.join(STRUCTURES)}")
    row_count, column_count = _count_share(rows, density**0.5), _count_share(columns, density**0.5)
    if min(row_count, column_count) <= max_side:
        return row_count, column_count
    # The short side along the matrix's smaller dimension leaves the most room for the long one.
    long_side = max(1, round(count_entries(shape, density) / max_side))
    return (
        (max_side, min(columns, long_side)) if rows <= columns else (min(rows, long_side), max_side)
    )


def count_mask_entries(mask: str, shape: Shape, *, density: float, rank: int | None) -> int:
    """Entries of a mask of any strategy, where layers do not compete for them."""
    if mask not in STRUCTURES:
        return count_entries(shape, density)
    rows, columns = compute_block_sides(mask, shape, density=density, rank=rank)
    return rows * columns


def compute_exact_rank(mask: str, shape: Shape, *, density: float, rank: int | None) -> int:
    """The smallest rank at which the hand-off of such a mask loses nothing, whatever its values."""
    if mask not in STRUCTURES:
        return min(*shape, count_entries(shape, density))
    return min(compute_block_sides(mask, shape, density=density, rank=rank))


def _count_share(count: int, share: float) -> int:
    return min(count, max(1, round(count * share)))
