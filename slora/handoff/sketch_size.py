"""The size of a hand-off's sketches, for plans. No torch.

O, I: rows and columns of a layer. K: columns of its sketch.
"""

from __future__ import annotations

EXTRA_COLUMNS = 8
"""Columns of a sketch beyond twice the rank (Tropp et al., 2017, arXiv 1706.05736, section 4.5:
twice the rank and one are enough where the spectrum decays)."""
FACT_COUNT = 2
"""Numbers of a sketch beside its matrices: tokens, and the energy of their gradients."""


def count_columns(shape: tuple[int, int], rank: int) -> int:
    """Return K, the columns of the sketch of a layer `[O, I]` for this rank."""
    return min(*shape, 2 * rank + EXTRA_COLUMNS)


def count_sketch_numbers(shape: tuple[int, int], rank: int, *, gradients: bool) -> int:
    """Return how many numbers the sums of a layer `[O, I]` are."""
    rows = shape[1] + (shape[0] if gradients else 0)
    return rows * count_columns(shape, rank) + FACT_COUNT
