"""The two factors of a low-rank update, of one matrix or of fused experts: see `shapes`.

O, I: rows and columns of one expert's matrix. E: experts. R: the rank. A is `[E R, I]`, B is
`[E O, R]`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from slora.layers.shapes import LayerShape

Factors = tuple[Tensor, Tensor]
"""(a_RI, b_OR)."""


def get_rank(factors: Factors) -> int:
    """Return the rank, in each expert."""
    return factors[1].shape[1]


def get_factors_shape(factors: Factors) -> LayerShape:
    """Return the shape of the layer that these factors update."""
    a_RI, b_OR = factors
    return LayerShape(b_OR.shape[0], a_RI.shape[1], _count_stacked(a_RI, b_OR))


def multiply_factors(a_RI: Tensor, b_OR: Tensor) -> Tensor:
    """Return the product of each expert's B and A, `[E O, I]`."""
    rows, rank = b_OR.shape
    experts = _count_stacked(a_RI, b_OR)
    if experts == 1:
        return b_OR @ a_RI
    product_EOI = b_OR.view(experts, -1, rank) @ a_RI.view(experts, rank, -1)
    return product_EOI.view(rows, -1)


def split_experts(factors: Factors) -> list[Factors]:
    """Return each expert's own factors."""
    a_RI, b_OR = factors
    experts = _count_stacked(a_RI, b_OR)
    return list(zip(a_RI.chunk(experts), b_OR.chunk(experts), strict=True))


def _count_stacked(a_RI: Tensor, b_OR: Tensor) -> int:
    """Return the number of experts; an update of rank 0 does not tell it."""
    return max(1, a_RI.shape[0] // max(1, b_OR.shape[1]))


def stack_experts(pairs: Iterable[Factors]) -> Factors:
    """Return the factors of fused experts from each expert's own."""
    a, b = zip(*pairs, strict=True)
    return (a[0], b[0]) if len(a) == 1 else (torch.cat(a), torch.cat(b))


def join_ranks(first: Factors, second: Factors) -> Factors:
    """Return the sum of two updates as factors of both ranks together."""
    pairs = zip(split_experts(first), split_experts(second), strict=True)
    return stack_experts((torch.cat((a, c)), torch.cat((b, d), dim=1)) for (a, b), (c, d) in pairs)


def select_ranks(factors: Factors, keep_R: Tensor) -> Factors:
    """Return the factors of the ranks for which the boolean `keep_R` is True."""
    return stack_experts((a[keep_R], b[:, keep_R]) for a, b in split_experts(factors))
