"""Inits of a low-rank stage without a preceding sparse stage: PiSSA and LoRA-GA.

O, I: rows and columns of the weight. R: the rank. Both subtract their initial product from the
frozen weight (`subtract_from_base`), so the model computes the same at the first step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slora.errors import BadRank
from slora.handoff.handoff import split_triplets
from slora.handoff.low_rank_init import LowRankInit
from slora.handoff.svd import compute_dense_svd

GAMMA = 16.0
"""Stability factor of LoRA-GA; the authors use 16 for large models."""


def init_pissa(weight_OI: Tensor, *, rank: int, scale: float) -> LowRankInit:
    """Return the best rank-R part of the weight, with the roots of its values in both factors.

    Meng et al., 2024, arXiv 2404.02948. Raise BadRank.
    """
    a_RI, b_OR = split_triplets(
        compute_dense_svd(weight_OI.detach(), rank), scale=scale, split="balanced"
    )
    return LowRankInit(a_RI, b_OR, subtract_from_base=True)


def init_lora_ga(gradient_OI: Tensor, *, rank: int, scale: float) -> LowRankInit:
    """Return factors from the singular vectors of the first gradient.

    A consists of the first R right vectors and B of the next R left ones, so that the first step's
    update is the best one of rank 2R in the gradient's direction.

    Wang et al., 2024, arXiv 2407.05000, in its stable form: both factors are orthonormal vectors
    of one magnitude, here `O^(1/4) / sqrt(GAMMA scale)`, so that `scale B A` has the magnitude
    `sqrt(O) / GAMMA` for any scale. A gradient of zero gives factors of zero. Raise BadRank for a
    rank above half the smaller side.
    """
    shape = (gradient_OI.shape[0], gradient_OI.shape[1])
    if 2 * rank > min(shape):
        raise BadRank(2 * rank, shape, "LoRA-GA (which uses twice the rank)")
    u, _, vh = compute_dense_svd(gradient_OI.detach(), 2 * rank)
    size = shape[0] ** 0.25 / (GAMMA * scale) ** 0.5
    a_RI, b_OR = vh[:rank] * size, u[:, rank:] * size
    if not gradient_OI.any():
        a_RI, b_OR = torch.zeros_like(a_RI), torch.zeros_like(b_OR)
    return LowRankInit(a_RI.contiguous(), b_OR.contiguous(), subtract_from_base=True)
