"""Attention by row, under the name `rows` in transformers' registry: SDPA within each row.

The cost falls from L^2 to the sum of the rows' squares, and no mask is held. On CUDA torch's kernel
for rows of any length computes all of them at once; elsewhere rows of about the same length are
padded to each other, which a causal kernel never sees.

m: sequences; H: heads; L: tokens of a sequence; D: width of a head; T = m * L; S: slots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from jobs.plan.attention_choice import BY_ROW
from jobs.train.attention.half_attention import (
    OTHER_SCORES,
    SDPA,
    attend,
    attend_by_products,
    is_faster_by_products,
)
from jobs.train.attention.row_layout import RowLayout
from jobs.train.attention.row_mask import make_row_mask

VARLEN_WIDTH = 256
"""Widest heads of torch's kernel for rows of any length."""


def use_row_attention(model: Any) -> bool:
    """Let a model that uses SDPA attend by row; return whether it does now."""
    if model.config._attn_implementation != SDPA or not model._can_set_attn_implementation():
        return False
    AttentionInterface.register(BY_ROW, attend_by_row)
    AttentionMaskInterface.register(BY_ROW, make_row_mask)
    try:
        model.set_attn_implementation(BY_ROW)
    except ValueError:
        # Some part of the model has no SDPA.
        model.set_attn_implementation(SDPA)
    return bool(model.config.get_text_config()._attn_implementation == BY_ROW)


def use_full_attention(model: Any) -> None:
    """Let a model attend with SDPA and its masks again."""
    model.set_attn_implementation(SDPA)


def attend_by_row(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: RowLayout | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return attention's output [m, L, H, D] and no weights. `query` is [m, H, L, D]; `key` and
    `value` may have fewer heads. With a mask or without rows, this is transformers' SDPA.

    Raise ValueError for scores with a bias, a cap or sinks, and for keys of a cache.
    """
    if not isinstance(attention_mask, RowLayout):
        return attend(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    layout = attention_mask
    shape = (layout.sequences, layout.length)
    if any(options.get(name) is not None for name in OTHER_SCORES):
        raise ValueError(f"attention by row has no {', '.join(OTHER_SCORES)}")
    if any((tensor.shape[0], tensor.shape[2]) != shape for tensor in (query, key, value)):
        raise ValueError(f"attention by row needs queries and keys of {shape[1]} tokens each")
    if has_kernel_for_rows(query, value, dropout):
        return attend_at_once(query, key, value, layout, scaling), None
    return _attend_in_groups(query, key, value, layout, scaling, dropout), None


def has_kernel_for_rows(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Return whether torch's CUDA kernel for rows of any length takes these tensors."""
    width = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and width == value.shape[-1] <= VARLEN_WIDTH
        and width % 8 == 0
        and not dropout
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def attend_at_once(
    query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, scaling: float | None
) -> Tensor:
    """Return the output [m, L, H, D] of torch's kernel for rows of any length."""
    # [m, H, L, D] -> [T, H, D]
    query, key, value = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    # Imported here: it loads torch's compiler, and only rows on a GPU come this way.
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(
        query,
        key,
        value,
        layout.bounds,
        layout.bounds,
        layout.longest,
        layout.longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)
    return output.view(layout.sequences, layout.length, *output.shape[1:])


def _attend_in_groups(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: RowLayout,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    parts = [_split_groups(tensor, layout) for tensor in (query, key, value)]
    outputs = [
        _attend_in_group(q, k, v, scaling, dropout).transpose(1, 2).flatten(0, 1).flatten(1)
        for q, k, v in zip(*parts, strict=True)
    ]
    output_TD: Tensor = _TakeFromSlots.apply(  # type: ignore[no-untyped-call]
        torch.cat(outputs), layout
    )
    shape = (layout.sequences, layout.length, query.shape[1], value.shape[-1])
    return output_TD.view(shape)


def _attend_in_group(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float
) -> Tensor:
    """Return the output [n, H, l, D] of rows of one length."""
    if is_faster_by_products(query, key) and not dropout:
        return attend_by_products(query, key, value, scaling, causally=True)
    return scaled_dot_product_attention(
        query,
        key,
        value,
        dropout_p=dropout,
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _split_groups(tensor: Tensor, layout: RowLayout) -> list[Tensor]:
    """Return the rows of each group, [n, H, l, D], from [m, H, L, D]."""
    heads, width = tensor.shape[1], tensor.shape[3]
    flat_TD = tensor.transpose(1, 2).reshape(-1, heads * width)
    slots_SD: Tensor = _PutInSlots.apply(flat_TD, layout)  # type: ignore[no-untyped-call]
    parts = torch.split(slots_SD, [group.rows * group.length for group in layout.groups])
    return [
        part.view(group.rows, group.length, heads, width).transpose(1, 2)
        for part, group in zip(parts, layout.groups, strict=True)
    ]


class _PutInSlots(torch.autograd.Function):
    """Moves tokens [T, D] into slots [S, D]. Slots behind a row's end have no gradient: causal
    attention shows them to no token."""

    @staticmethod
    def forward(ctx: Any, tokens_TD: Tensor, layout: RowLayout) -> Tensor:
        ctx.layout = layout
        return tokens_TD.index_select(0, layout.slot_tokens_S)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_SD: Tensor) -> tuple[Tensor, None]:
        return gradient_SD.index_select(0, ctx.layout.token_slots_T), None


class _TakeFromSlots(torch.autograd.Function):
    """Moves slots [S, D] back to tokens [T, D]."""

    @staticmethod
    def forward(ctx: Any, slots_SD: Tensor, layout: RowLayout) -> Tensor:
        ctx.layout = layout
        return slots_SD.index_select(0, layout.token_slots_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_TD: Tensor) -> tuple[Tensor, None]:
        layout: RowLayout = ctx.layout
        gradient_SD = gradient_TD.index_select(0, layout.slot_tokens_S)
        return gradient_SD.index_fill_(0, layout.empty_slots, 0), None
