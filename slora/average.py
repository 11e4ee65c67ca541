"""The mean of several low-rank updates as one of the same rank.

O, I: rows and columns of a weight. R: the rank. W: how many updates there are. The mean of B A has
rank up to W R; its best part of rank R is found from the factors, without the dense product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_CONDITION = 1e4
"""Of the change of basis; beyond it, a rotation is taken instead."""


@dataclass(frozen=True)
class MeanProduct:
    """Factors of the mean, and what they could not hold."""

    a_RI: Tensor
    b_OR: Tensor
    lost: float
    """Energy (squared Frobenius norm) of the mean outside the rank."""
    energy: float
    """Of the whole mean."""


def mean_product(pairs: Sequence[tuple[Tensor, Tensor]]) -> MeanProduct:
    """The best `b_OR @ a_RI` to the mean of `B_i A_i`, given (a_RI, b_OR) of each; float32.

    Of all factors with that product, those nearest to the mean A are taken: an optimiser's moments
    of the old factors then still mean something for the new ones.
    """
    rank = pairs[0][0].shape[0]
    mean_a = torch.stack([a for a, _ in pairs]).mean(0)
    left_OW = torch.cat([b for _, b in pairs], dim=1).double() / len(pairs)
    right_WI = torch.cat([a for a, _ in pairs]).double()
    q_left, r_left = torch.linalg.qr(left_OW)
    q_right, r_right = torch.linalg.qr(right_WI.t())
    u, s, vh = torch.linalg.svd(r_left @ r_right.t(), full_matrices=False)
    energy, kept = float(s.square().sum()), s[:rank]
    if not energy:
        return MeanProduct(mean_a, torch.zeros_like(pairs[0][1]), 0.0, 0.0)
    root = kept.sqrt()
    b_OR = q_left @ (u[:, :rank] * root)
    a_RI = root[:, None] * (vh[:rank] @ q_right.t())
    turn_RR = _basis(a_RI, mean_a.double(), root)
    a_RI, b_OR = turn_RR @ a_RI, b_OR @ torch.linalg.inv(turn_RR)
    lost = float(s[rank:].square().sum())
    like = pairs[0][0]
    return MeanProduct(a_RI.to(like.dtype), b_OR.to(like.dtype), lost, energy)


def _basis(a_RI: Tensor, wanted_RI: Tensor, root: Tensor) -> Tensor:
    """The change of basis that brings `a_RI` nearest to `wanted_RI`, `[R, R]`, well conditioned."""
    if float(root[-1]) > float(root[0]) / MOST_CONDITION:
        turn: Tensor = wanted_RI @ torch.linalg.pinv(a_RI)
        if float(torch.linalg.cond(turn)) < MOST_CONDITION:
            return turn
    # Orthogonal Procrustes: always there, and never stretches anything.
    u, _, vh = torch.linalg.svd(wanted_RI @ a_RI.t())
    return torch.as_tensor(u @ vh)
