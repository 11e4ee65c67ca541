"""The mask function of attention by row, for transformers' registry: a layout in place of a mask.

transformers describes a mask by a function of two positions, and calls the registered function to
make it. Where that mask lets each token see its own row up to itself, and nothing else, the rows
are all that it says. They are read from the pairs of neighbours and from the rows' ends, L entries
instead of L x L; any other mask is made as SDPA's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import and_masks, padding_mask_function, sdpa_mask

from jobs.train.attention.row_layout import RowLayout, make_layout

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Returns whether a token sees another: of sequence, head, and the positions of both."""


def make_row_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    *,
    mask_function: MaskFunction,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    device: Any = None,
    **options: Any,
) -> RowLayout | Tensor | None:
    """Return the rows that the mask keeps apart, or the mask of SDPA where rows do not tell it; as
    that, None where each sequence is one causal row. `attention_mask` is [m, L], True for tokens.
    """
    is_square = q_length == kv_length > 1 and isinstance(q_offset, int) and not kv_offset + q_offset
    # A function that needs vmap is a model's own, and may do anything.
    if is_square and not use_vmap and not allow_is_bidirectional_skip:
        padded = attention_mask is not None
        visible = (
            and_masks(mask_function, padding_mask_function(attention_mask))
            if padded
            else mask_function
        )
        starts = find_rows(visible, attention_mask, batch_size, q_length, device)
        if starts is not None and len(starts) > batch_size:
            return make_layout(starts, sequences=batch_size, length=q_length, device=device)
    mask: Tensor | None = sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset,
        kv_offset,
        mask_function,
        attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        use_vmap=use_vmap,
        device=device,
        **options,
    )
    return mask


def find_rows(
    visible: MaskFunction, tokens_mL: Tensor | None, sequences: int, length: int, device: Any
) -> list[int] | None:
    """Return the first tokens of all rows, in the flattened batch; None if some token sees more or
    less than its own row up to itself. Tokens outside `tokens_mL`, padding, are rows of their own.
    """
    line_m1 = torch.arange(sequences, device=device)[:, None]
    head = torch.zeros((), dtype=torch.int64, device=device)
    later_1L = torch.arange(1, length, device=device)[None]
    sees_previous = visible(line_m1, head, later_1L, later_1L - 1).expand(sequences, -1)
    if visible(line_m1, head, later_1L - 1, later_1L).any():
        return None
    if tokens_mL is not None:
        tokens_mL = tokens_mL.bool()
        if ((tokens_mL[:, 1:] & ~tokens_mL[:, :-1]).sum(1) + tokens_mL[:, 0] > 1).any():
            # A gap inside a row: the tokens on both of its sides still see each other.
            return None
        sees_previous = sees_previous & tokens_mL[:, 1:]
    is_first_mL = torch.cat((torch.ones_like(line_m1, dtype=torch.bool), ~sees_previous), dim=1)
    starts = is_first_mL.flatten().nonzero().flatten()
    ends = torch.cat((starts[1:], starts.new_tensor([sequences * length]))) - 1
    # A row longer than a window: its last token does not see its first one.
    is_single = starts == ends
    sees_first = visible(starts // length, head, ends % length, starts % length)
    return starts.tolist() if bool((sees_first | is_single).all()) else None
