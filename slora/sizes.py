"""How many entries a mask has, and at which rank its hand-off is exact. Arithmetic only, no torch.

O, I: rows and columns of the matrix.
"""

from __future__ import annotations

from slora.errors import BadMask
from slora.names import entries

STRUCTURES = ("rows", "columns", "blocks")
"""Masks whose updates have a rank of their own; all others are any set of entries."""

Shape = tuple[int, int]


def block_sides(structure: str, shape: Shape, *, density: float, rank: int | None) -> Shape:
    """Rows and columns of a structured mask.

    As many as the density asks; with a `rank`, no more of them than keep the update within it, so
    that the hand-off at that rank is exact.
    """
    entries(shape, density)  # refuses what no mask can have
    rows, columns = shape
    most = rank or rows + columns
    if structure == "rows":
        return min(_share(rows, density), most), columns
    if structure == "columns":
        return rows, min(_share(columns, density), most)
    if structure != "blocks":
        raise BadMask(f"{structure!r} is no structure: use {', '.join(STRUCTURES)}")
    tall, wide = _share(rows, density**0.5), _share(columns, density**0.5)
    if min(tall, wide) <= most:
        return tall, wide
    # The short side along the matrix's smaller dimension leaves the most room for the long one.
    wanted = max(1, round(entries(shape, density) / most))
    return (most, min(columns, wanted)) if rows <= columns else (min(rows, wanted), most)


def mask_entries(mask: str, shape: Shape, *, density: float, rank: int | None) -> int:
    """Entries of a mask of any strategy, where layers do not compete for them."""
    if mask not in STRUCTURES:
        return entries(shape, density)
    rows, columns = block_sides(mask, shape, density=density, rank=rank)
    return rows * columns


def exact_rank(mask: str, shape: Shape, *, density: float, rank: int | None) -> int:
    """The smallest rank at which the hand-off of such a mask loses nothing, whatever its values."""
    if mask not in STRUCTURES:
        return min(*shape, entries(shape, density))
    return min(block_sides(mask, shape, density=density, rank=rank))


def _share(count: int, share: float) -> int:
    return min(count, max(1, round(count * share)))
