"""Attention in bfloat16 on a CPU, with a backward of matrix products.

torch's CPU kernel computes its backward in bfloat16 without the processor's bfloat16 products:
53 ms for 32 texts of 64 tokens where products take 8. Here the weights are computed anew, a few
rows at a time, and everything is a matrix product. Only the inputs are kept for it.

n: rows; H: heads; K: heads of keys; G = H / K; l: tokens of a row; D: width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

SDPA = "sdpa"
LONGEST = 256
"""Tokens of the longest rows for which products are used: twice as fast as torch's kernel at 256
tokens, no faster at 1,024."""
MAX_WEIGHTS = 4_000_000
"""Weights that are computed at once, 8 MB."""
OTHER_SCORES = ("position_bias", "softcap", "s_aux", "cache")
"""Arguments that change attention's scores in a way that only transformers' SDPA knows."""


def use_products_in_sdpa() -> None:
    """Let every model of this process that attends with transformers' SDPA use `attend`."""
    AttentionInterface.register(SDPA, attend)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return what transformers' SDPA does, [n, l, H, D] and no weights, by products where their
    backward is the faster one and the mask is one of visible tokens.
    """
    has_other_scores = any(options.get(name) is not None for name in OTHER_SCORES)
    is_known_mask = attention_mask is None or (
        attention_mask.dtype == torch.bool and attention_mask.shape[1] == 1
    )
    if has_other_scores or dropout or not is_known_mask or not is_faster_by_products(query, key):
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling,
            is_causal=is_causal, **options,
        )  # fmt: skip
        return output
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    causally = attention_mask is None and bool(is_causal)
    result = attend_by_products(query, key, value, scaling, mask=attention_mask, causally=causally)
    return result.transpose(1, 2).contiguous(), None


def is_faster_by_products(query: Tensor, key: Tensor) -> bool:
    """Return whether the backward by matrix products is the faster one for these tensors."""
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and query.shape[2] == key.shape[2] <= LONGEST
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def attend_by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    *,
    mask: Tensor | None = None,
    causally: bool = False,
) -> Tensor:
    """Return the output [n, H, l, D] of attention. `query` is [n, H, l, D], `key` and `value` are
    [n, K, l, D]; `mask` is [n or 1, 1, l or 1, l], True where a token is seen.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output: Tensor = _ProductAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, mask, scale, causally
    )
    return output


class _ProductAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        causally: bool,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.scale, ctx.causally = scale, causally
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=causally,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, mask = ctx.saved_tensors
        rows, heads, length, _ = tensors[0].shape
        if ctx.causally:
            mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril_()
        elif mask is None:
            mask = torch.ones(1, 1, 1, length, dtype=torch.bool)
        size = max(1, MAX_WEIGHTS // (heads * length * length))
        chunks = zip(
            *(t.split(size) for t in (*tensors, mask.expand(rows, -1, -1, -1), gradient)),
            strict=True,
        )
        gradients = [compute_gradients(*chunk, scale=ctx.scale) for chunk in chunks]
        return (*map(torch.cat, zip(*gradients, strict=True)), None, None, None)


def compute_gradients(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, gradient: Tensor, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, from that of the output [n, H, l, D]. `mask` is
    [n, 1, l or 1, l].
    """
    (rows, heads, length, _), kv_heads = query.shape, key.shape[1]
    # The queries of all heads that read one head of keys, one below the other.
    split = (rows, kv_heads, heads // kv_heads * length, -1)
    queries, gradients = (t.reshape(split) for t in (query * scale, gradient))
    keys, values = key.contiguous(), value.contiguous()
    weights = _compute_weights(queries, keys, mask, length)
    value_gradient = weights.mT @ gradients
    # The backward of softmax, whose weights are 0 at tokens that a query does not see.
    scores_gradient = torch._softmax_backward_data(
        gradients @ values.mT, weights, -1, weights.dtype
    )
    key_gradient = scores_gradient.mT @ queries
    query_gradient = (scores_gradient @ keys).mul_(scale)
    return query_gradient.view(query.shape), key_gradient, value_gradient


def _compute_weights(queries: Tensor, keys: Tensor, mask: Tensor, length: int) -> Tensor:
    """Return the weights [n, K, G * l, l] of the keys [n, K, l, D].

    Their scores are computed in float32, as those of the forward are: rounded ones triple the error
    of the gradients. A query that sees nothing, such as one of padding, has weights of 0.
    """
    scores = queries.float() @ keys.float().mT
    bias = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    scores.view(*scores.shape[:2], -1, length, scores.shape[-1]).add_(bias[:, :, None])
    weights = scores.softmax(-1)
    if not mask.any(-1).all():
        weights.nan_to_num_(0)
    return weights.to(queries.dtype)
