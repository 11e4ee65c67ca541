"""The entries of a mask in compressed rows, as the kernels read them.

O, I: rows and columns of the weight. Z: entries of the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slora.masks.mask import Mask


@dataclass(frozen=True, eq=False)
class EntryPattern:
    """The entries of an `[O, I]` matrix, row by row."""

    row_starts: Tensor
    """Index of each row's first entry, int32 `[O + 1]`."""
    columns: Tensor
    """Column of each entry, int32 `[Z]`."""
    positions: Tensor
    """Position of each entry, `row * I + column`, int64 `[Z]`."""
    shape: tuple[int, int]

    @property
    def nnz(self) -> int:
        """Return the number of entries."""
        return self.columns.numel()


def compress_rows(mask: Mask) -> EntryPattern:
    """Return the mask's entries in compressed rows, in the order of its positions."""
    rows = mask.positions // mask.shape[1]
    starts = torch.zeros(mask.shape[0] + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(rows, minlength=mask.shape[0]).cumsum(0)
    columns = mask.positions % mask.shape[1]
    shape = (mask.shape[0], mask.shape[1])
    return EntryPattern(starts.int(), columns.int(), mask.positions, shape)
