"""The hand-off: factor the sparse stage's update into the low-rank stage's two factors.

O, I: rows and columns of the update dW. R: the rank. Z: entries of the mask M.

The low-rank stage starts from `W + residual - scale B0 A0 (if subtract_from_base) + scale B A`:

    residual: drop   dW ~ scale B A; the part outside the rank is lost, as in the paper
    residual: keep   M o (dW - scale B A) stays frozen beside the factors: the part outside the
                     rank, restricted to the mask
    residual: fold   dW stays complete, and the initial factors are subtracted: nothing is lost

The optimiser's moments for A and B start at zero, and its step count at one, with a warm-up of
their own: the moments of the values belong to coordinates that no longer exist, and of the
gradient of A, `scale B^T G`, the mask has observed one entry of G in a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from slora.handoff.linear_update import SparseUpdate
from slora.handoff.output_norm import NormedSplit, measure_output_share, split_by_sketch
from slora.handoff.sketch import LayerSketch
from slora.handoff.svd import Triplets, check_rank, compute_sparse_svd
from slora.layers.factors import Factors, get_rank, split_experts, stack_experts
from slora.layers.shapes import get_expert_shape
from slora.masks.mask import Mask
from slora.masks.stacks import split_values

Split = Literal["balanced", "b"]
Rescale = Literal["none", "norm", "projection"]
Residual = Literal["drop", "fold", "keep"]
Refine = Callable[[Tensor, Tensor, list[int]], Factors]
"""Refine the factors (a_RI, b_OR), given the effective rank of each expert (of one layer: one),
before they are used."""
GATHERED_NUMBERS = 1 << 17
"""Numbers of each factor that are gathered at once: they stay in a core's cache."""
RANK_TOLERANCE = 1e-6
"""Singular values below this share of the largest are rounding errors, not part of the update."""


@dataclass(frozen=True)
class Handoff:
    """The hand-off of a layer.

    `a_RI`, `b_OR`: float32, the initial factors of the low-rank stage.
    `energy_share`: share of `||dW||^2` that the rank retains, before any rescaling; if B was
    refined, or in the loss's norm, `1 - error^2`, but at least 0.
    `output_share`: share of `||dW X^T||^2`, the outputs' energy, that the final factors retain, or
    somewhat less; None without a sketch of the inputs.
    `error`: `||dW - scale B A|| / ||dW||` of the final factors, after rescaling and refinement.
    `norm`: `||dW||`, Frobenius.
    `effective_rank`: number of the R components that exceed the rounding error, the most of any
    expert.
    `residual`: float32 `[Z]`, the part that stays on the mask beside the factors; None for `drop`.
    """

    a_RI: Tensor
    b_OR: Tensor
    energy_share: float
    error: float
    norm: float
    effective_rank: int
    output_share: float | None = None
    residual: Tensor | None = None


def split_sparse_update(
    values: Tensor,
    mask: Mask,
    *,
    rank: int,
    scale: float,
    split: Split = "balanced",
    rescale: Rescale = "none",
    residual: Residual = "drop",
    refine: Refine | None = None,
    sketch: LayerSketch | None = None,
) -> Handoff:
    """Return factors of the update `values` `[Z]` on its mask. Raise BadRank.

    They are the nearest to it in the norm of the `sketch`, of the outputs or of the loss: see
    `output_norm`; without one, in that of the weights. Fused experts are factored one by one, each
    at the rank, and have no sketch.

    `rescale: norm` stretches the factors to `||dW||`. `projection` multiplies them by the c that
    brings them nearest to dW on the mask's entries, `<dW, P> / ||M o P||^2` for `P = scale B A`:
    over all entries the best c of a truncated SVD is 1, but only those of the mask were trained.
    `refine` may change the factors before the residual and the error are computed.
    """
    experts = [
        _split_matrix(part, part_mask, sketch, rank=rank, scale=scale, split=split, rescale=rescale)
        for part, part_mask in split_values(values.detach().cpu(), mask)
    ]
    is_projection = sketch is None or sketch.gradients_OK is None
    a_RI, b_OR = stack_experts(expert.factors for expert in experts)
    update_Z = values.detach().double().cpu()
    energy = float(update_Z.square().sum())
    unrefined_b = b_OR
    if refine is not None:
        a_RI, b_OR = refine(a_RI, b_OR, [expert.effective_rank for expert in experts])
    product_Z = scale * compute_on_mask(a_RI.double(), b_OR.double(), mask)
    residual_Z = None
    if residual == "fold":
        residual_Z = update_Z.float()
    elif residual == "keep":
        residual_Z = (update_Z - product_Z).float()
    error = _compute_error(update_Z, product_Z, a_RI, b_OR, scale)
    return Handoff(
        a_RI=a_RI.contiguous(),
        b_OR=b_OR.contiguous(),
        energy_share=_limit_share(sum(expert.energy for expert in experts), energy)
        if is_projection and torch.equal(b_OR, unrefined_b)
        else max(0.0, 1.0 - error**2),
        error=error,
        norm=math.sqrt(energy),
        effective_rank=max(expert.effective_rank for expert in experts),
        output_share=experts[0].measure_outputs(a_RI, b_OR, scale),
        residual=residual_Z,
    )


@dataclass(frozen=True)
class _SplitMatrix:
    """The factors of one expert, or of an ordinary layer, and the energy that they retain."""

    factors: Factors
    effective_rank: int
    energy: float
    normed: NormedSplit | None = None

    def measure_outputs(self, a_RI: Tensor, b_OR: Tensor, scale: float) -> float | None:
        """Return the share of the outputs' energy that these factors retain, if there is a sketch
        to tell it.
        """
        if self.normed is None:
            return None
        return measure_output_share(self.normed, a_RI, b_OR, scale=scale)


def _split_matrix(
    values: Tensor,
    mask: Mask,
    sketch: LayerSketch | None,
    *,
    rank: int,
    scale: float,
    split: Split,
    rescale: Rescale,
) -> _SplitMatrix:
    normed = None
    if sketch is None:
        u, s, vh = compute_sparse_svd(values, mask, rank)
    else:
        check_rank(rank, mask.shape)
        normed = split_by_sketch(SparseUpdate(values, mask), sketch, rank)
        u, s, vh = normed.triplets
    effective_rank = int((s > RANK_TOLERANCE * float(s[0])).sum())
    # Components below the rounding error are not directions of the update.
    s = torch.where(torch.arange(rank) < effective_rank, s, torch.zeros(()))
    update_Z = values.double()
    a_RI, b_OR = split_triplets((u, s, vh), scale=scale, split=split)
    retained_energy, energy = float(s.double().square().sum()), float(update_Z.square().sum())
    stretch = _compute_stretch(
        rescale, update_Z, mask, (a_RI, b_OR), scale, energy, retained_energy
    )
    factors = a_RI, b_OR * stretch
    return _SplitMatrix(factors, effective_rank, retained_energy, normed)


def split_triplets(triplets: Triplets, *, scale: float, split: Split) -> tuple[Tensor, Tensor]:
    """Return (a_RI, b_OR) with `scale * b_OR @ a_RI = u diag(s) vh`."""
    u, s, vh = triplets
    s = s / scale
    if split == "b":
        return vh.contiguous(), (u * s).contiguous()
    root = s.sqrt()
    return (root[:, None] * vh).contiguous(), (u * root).contiguous()


def compute_on_mask(a_RI: Tensor, b_OR: Tensor, mask: Mask) -> Tensor:
    """Return `(B A)` at the mask's entries, `[Z]`, without the dense product."""
    rank, columns = get_rank((a_RI, b_OR)), mask.shape[1]
    # Rows of A^T, which lie one after the other: of expert e from e I on.
    a_XR = a_RI.reshape(-1, rank, columns).transpose(1, 2).reshape(-1, rank)
    products = []
    for positions in torch.split(mask.positions, max(1, GATHERED_NUMBERS // rank)):
        rows = positions // columns
        entries = rows // get_expert_shape(mask.shape)[0] * columns + positions % columns
        products.append((b_OR[rows] * a_XR[entries]).sum(1))
    return torch.cat(products)


def _compute_stretch(
    rescale: Rescale,
    values: Tensor,
    mask: Mask,
    factors: tuple[Tensor, Tensor],
    scale: float,
    energy: float,
    retained_energy: float,
) -> float:
    if rescale == "none" or not retained_energy:
        return 1.0
    if rescale == "norm":
        return math.sqrt(energy / retained_energy)
    product_Z = scale * compute_on_mask(*factors, mask).double()
    return float((values * product_Z).sum() / product_Z.square().sum())


def _compute_share(s: Tensor, energy: float) -> float:
    return _limit_share(float(s.double().square().sum()), energy)


def _limit_share(retained_energy: float, energy: float) -> float:
    # An unchanged matrix has no energy to lose: zero factors retain all of it.
    return min(1.0, retained_energy / energy) if energy else 1.0


def _compute_error(
    values: Tensor, product_Z: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float
) -> float:
    """Return `||dW - P|| / ||dW||` for `P = scale B A`, without a dense P.

    `product_Z` is P on the mask. `||dW - P||^2 = ||dW - M o P||^2 + ||P||^2 - ||M o P||^2`, in
    float64.
    """
    energy = float(values.square().sum())
    if not energy:
        return 0.0
    product_energy = scale**2 * sum(
        float(((b.t() @ b) * (a @ a.t())).sum())
        for a, b in split_experts((a_RI.double(), b_OR.double()))
    )
    outside_energy = max(0.0, product_energy - float(product_Z.square().sum()))
    # A smaller difference is below the precision of the two float64 sums.
    outside_energy = outside_energy if outside_energy > 1e-13 * product_energy else 0.0
    return math.sqrt((float((values - product_Z).square().sum()) + outside_energy) / energy)
