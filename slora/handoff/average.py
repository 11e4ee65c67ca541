"""Average several low-rank updates into one of the same rank.

O, I: rows and columns of a weight. R: the rank. W: number of updates. The mean of B A has a rank
of up to W R; its best approximation of rank R is computed from the factors, without the dense
product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slora.layers.factors import Factors, get_rank, split_experts, stack_experts

MAX_CONDITION = 1e4
"""Largest condition number of the change of basis; beyond it, a rotation is used instead."""


@dataclass(frozen=True)
class AveragedFactors:
    """Factors of the mean, and the energy that they could not represent."""

    a_RI: Tensor
    b_OR: Tensor
    lost_energy: float
    """Energy (squared Frobenius norm) of the mean outside the rank."""
    energy: float
    """Energy of the complete mean."""


def average_low_rank(pairs: Sequence[tuple[Tensor, Tensor]]) -> AveragedFactors:
    """Return the best `b_OR @ a_RI` for the mean of `B_i A_i`, given (a_RI, b_OR) of each; float32.

    Fused experts are averaged one by one. Among all factors with that product, those nearest to the
    mean A are returned: the optimiser's moments of the old factors then remain meaningful for the
    new ones.
    """
    averages = [_average_matrix(expert) for expert in zip(*map(split_experts, pairs), strict=True)]
    a_RI, b_OR = stack_experts((average.a_RI, average.b_OR) for average in averages)
    return AveragedFactors(
        a_RI,
        b_OR,
        sum(average.lost_energy for average in averages),
        sum(average.energy for average in averages),
    )


def _average_matrix(pairs: Sequence[Factors]) -> AveragedFactors:
    rank = get_rank(pairs[0])
    mean_a = torch.stack([a for a, _ in pairs]).mean(0)
    stacked_b = torch.cat([b for _, b in pairs], dim=1).double() / len(pairs)
    stacked_a = torch.cat([a for a, _ in pairs]).double()
    q_b, r_b = torch.linalg.qr(stacked_b)
    q_a, r_a = torch.linalg.qr(stacked_a.t())
    u, s, vh = torch.linalg.svd(r_b @ r_a.t(), full_matrices=False)
    energy, leading = float(s.square().sum()), s[:rank]
    if not energy:
        return AveragedFactors(mean_a, torch.zeros_like(pairs[0][1]), 0.0, 0.0)
    root = leading.sqrt()
    b_OR = q_b @ (u[:, :rank] * root)
    a_RI = root[:, None] * (vh[:rank] @ q_a.t())
    basis_RR = _choose_basis(a_RI, mean_a.double(), root)
    a_RI, b_OR = basis_RR @ a_RI, b_OR @ torch.linalg.inv(basis_RR)
    lost_energy = float(s[rank:].square().sum())
    reference = pairs[0][0]
    return AveragedFactors(a_RI.to(reference.dtype), b_OR.to(reference.dtype), lost_energy, energy)


def _choose_basis(a_RI: Tensor, target_RI: Tensor, root: Tensor) -> Tensor:
    """Return the well-conditioned `[R, R]` that brings `a_RI` nearest to `target_RI`."""
    if float(root[-1]) > float(root[0]) / MAX_CONDITION:
        basis: Tensor = target_RI @ torch.linalg.pinv(a_RI)
        if float(torch.linalg.cond(basis)) < MAX_CONDITION:
            return basis
    # Orthogonal Procrustes always has a solution, and it never stretches anything.
    u, _, vh = torch.linalg.svd(target_RI @ a_RI.t())
    return torch.as_tensor(u @ vh)
