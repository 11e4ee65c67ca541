"""The masks of the single experts in the mask of fused ones: see `slora.layers.shapes`.

O, I: rows and columns of one expert's matrix. Z: entries of a mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slora.layers.shapes import count_experts, get_expert_shape
from slora.masks.mask import BlockMask, EntryMask, Mask


def split_values(values: Tensor, mask: Mask) -> list[tuple[Tensor, Mask]]:
    """Return each expert's values `[Z]` and its mask `[O, I]`; an ordinary layer's own."""
    experts = count_experts(mask.shape)
    if experts == 1:
        return [(values, mask)]
    masks = [_cut_mask(mask, expert) for expert in range(experts)]
    # The positions ascend, and so do the experts.
    parts = torch.split(values, [part.nnz for part in masks])
    return list(zip(parts, masks, strict=True))


def _cut_mask(mask: Mask, expert: int) -> Mask:
    shape = get_expert_shape(mask.shape)
    if isinstance(mask, BlockMask):
        return BlockMask(shape, _cut_range(mask.rows, expert, shape[0]), mask.columns)
    return EntryMask(shape, _cut_range(mask.positions, expert, shape[0] * shape[1]))


def _cut_range(numbers: Tensor, index: int, size: int) -> Tensor:
    """Return the ascending numbers in the `index`-th range of this size, from its start."""
    bounds = torch.tensor([index * size, (index + 1) * size])
    first, last = torch.searchsorted(numbers, bounds).tolist()
    return numbers[first:last] - index * size
