"""Causal attention in bfloat16 on a CPU, with a backward of matrix products.

torch's CPU kernel computes its backward in bfloat16 without the processor's bfloat16 products. Here
the weights are computed anew, block by block of queries, and everything is a matrix product. Only
the inputs are kept for it.

n: rows; H: heads; K: heads of keys; G = H / K; l: tokens of a row; D: width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

BLOCK = 256
"""Queries of a block: the keys behind a block are skipped."""
LONGEST = 256
"""Tokens of the longest rows for which products are used: twice as fast as torch's kernel at 128
tokens, no faster at 1,024."""
MAX_WEIGHTS = 4_000_000
"""Weights that are computed at once, 8 MB."""


def is_faster_by_products(query: Tensor) -> bool:
    """Return whether the backward by matrix products is the faster one for this query."""
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and query.shape[2] <= LONGEST
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def attend_causally(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Return the output [n, H, l, D] of causal attention. `query` is [n, H, l, D], `key` and
    `value` are [n, K, l, D].
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output: Tensor = _CausalAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, scale
    )
    return output


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        return scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        tensors = ctx.saved_tensors
        query = tensors[0]
        size = query.shape[1] * min(query.shape[2], BLOCK) * query.shape[2]
        rows = max(1, MAX_WEIGHTS // size)
        chunks = zip(*(t.split(rows) for t in (*tensors, gradient)), strict=True)
        gradients = [compute_gradients(*chunk, scale=ctx.scale) for chunk in chunks]
        query_gradient, key_gradient, value_gradient = map(torch.cat, zip(*gradients, strict=True))
        return query_gradient, key_gradient, value_gradient, None


def compute_gradients(
    query: Tensor, key: Tensor, value: Tensor, gradient: Tensor, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, from that of the output [n, H, l, D]."""
    (rows, heads, length, width), kv_heads = query.shape, key.shape[1]
    group = heads // kv_heads
    split = (rows, kv_heads, group, length)
    query, gradient = (t.reshape(*split, t.shape[-1]) for t in (query * scale, gradient))
    key, value = key.contiguous(), value.contiguous()
    query_gradient = torch.empty(*split, width, dtype=query.dtype)
    key_gradient, value_gradient = (
        torch.zeros(*t.shape, dtype=torch.float32 if length > BLOCK else t.dtype)
        for t in (key, value)
    )
    for first in range(0, length, BLOCK):
        last = min(first + BLOCK, length)
        block = (rows, kv_heads, group * (last - first), -1)
        query_block, gradient_block = (
            t[:, :, :, first:last].reshape(block) for t in (query, gradient)
        )
        keys, values = key[:, :, :last], value[:, :, :last]
        weights = _compute_weights(query_block, keys, group)
        value_gradient[:, :, :last] += weights.mT @ gradient_block
        # The backward of softmax, whose weights are 0 at tokens that a query does not see.
        scores_gradient = torch._softmax_backward_data(
            gradient_block @ values.mT, weights, -1, weights.dtype
        )
        key_gradient[:, :, :last] += scores_gradient.mT @ query_block
        query_part = (scores_gradient @ keys).mul_(scale)
        query_gradient[:, :, :, first:last] = query_part.view(rows, kv_heads, group, -1, width)
    return (
        query_gradient.view(rows, heads, length, width),
        key_gradient.to(key.dtype),
        value_gradient.to(value.dtype),
    )


def _compute_weights(query: Tensor, keys: Tensor, group: int) -> Tensor:
    """Return the weights of the last queries [n, K, G * q, D] of the keys [n, K, k, D].

    Their scores are computed in float32, as those of the forward are: rounded ones triple the error
    of the gradients.
    """
    scores = query.float() @ keys.float().mT
    queries = query.shape[2] // group
    later = torch.full((queries, queries), -torch.inf).triu_(1)
    scores.view(*scores.shape[:2], group, queries, -1)[..., -queries:] += later
    return scores.softmax(-1).to(query.dtype)
