"""The hand-off: the sparse stage's update, split into the low-rank stage's two factors.

O, I: rows and columns of the update dW. R: the rank. Z: entries of the mask M.

What the low-rank stage starts from is `W + residual - scale B0 A0 (if minus) + scale B A`:

    residual: drop   dW ~ scale B A; the part outside the rank is lost, as in the paper
    residual: keep   M o (dW - scale B A) stays beside the factors, frozen: of the part outside the
                     rank, what lies on the mask
    residual: fold   dW stays whole, and the factors' start is taken out again: nothing is lost

The optimiser's moments for A and B start at zero, and its step count at one, with a warm-up of
their own: the moments of the values belong to coordinates that are no more, and of the gradient of
A, `scale B^T G`, the mask has seen one entry of G in a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from slora.mask import Mask
from slora.svd import Triplets, svd_of_dense, svd_of_sparse

Split = Literal["balanced", "b"]
Rescale = Literal["none", "norm", "projection"]
Residual = Literal["drop", "fold", "keep"]
Refine = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Changes the factors (a_RI, b_OR), of which so many ranks are in effect, before they count."""
NOTHING = 1e-6
"""Singular values below this share of the largest are rounding, not update."""


@dataclass(frozen=True)
class Factors:
    """`scale * b_OR @ a_RI` is the best rank-R approximation of the update.

    `kept`: share of the update's squared Frobenius norm that it holds, 1.0 for an update of zero.
    `error`: `||update - scale B A|| / ||update||`, which is `sqrt(1 - kept)` by Eckart and Young.
    """

    a_RI: Tensor
    b_OR: Tensor
    kept: float

    @property
    def error(self) -> float:
        return math.sqrt(max(0.0, 1.0 - self.kept))


@dataclass(frozen=True)
class Handoff:
    """One layer's hand-off.

    `a_RI`, `b_OR`: float32, the low-rank stage's start.
    `kept`: share of `||dW||^2` that the rank holds, before any rescaling; where B was refined,
    `1 - error^2`, and 0 at least.
    `error`: `||dW - scale B A|| / ||dW||` of the factors as they are, rescaled, refined or not.
    `norm`: `||dW||`, Frobenius.
    `rank_in_effect`: how many of the R components are more than rounding.
    `residual`: float32 `[Z]`, what stays on the mask beside them; None for `drop`.
    """

    a_RI: Tensor
    b_OR: Tensor
    kept: float
    error: float
    norm: float
    rank_in_effect: int
    residual: Tensor | None = None


def factor(
    delta_OI: Tensor, *, rank: int, scale: float = 1.0, split: Split = "balanced"
) -> Factors:
    """Split a dense `delta_OI` into `scale * b_OR @ a_RI`, in float32, by its singular values.

    `balanced` gives each factor the values' roots, `b` gives them all to B (as PEFT's conversion
    does). Singular vectors have a free sign; it is fixed so that equal updates give equal factors
    on every rank. Raises BadRank.
    """
    found = svd_of_dense(delta_OI, rank)
    energy = float(delta_OI.double().square().sum())
    a_RI, b_OR = divided(found, scale=scale, split=split)
    return Factors(a_RI, b_OR, _share(found[1], energy))


def hand_off(
    values: Tensor,
    mask: Mask,
    *,
    rank: int,
    scale: float,
    split: Split = "balanced",
    rescale: Rescale = "none",
    residual: Residual = "drop",
    refine: Refine | None = None,
) -> Handoff:
    """The update `values` `[Z]` on its mask, as factors. Raises BadRank.

    `rescale: norm` stretches the factors to `||dW||`. `projection` multiplies them by the c that
    brings them nearest to dW on the mask's entries, `<dW, P> / ||M o P||^2` for `P = scale B A`:
    over all entries the best c of a truncated SVD is 1, but only those of the mask were trained.
    `refine` may change the factors before what is left of dW is taken and measured.
    """
    u, s, vh = svd_of_sparse(values, mask, rank)
    effective = int((s > NOTHING * float(s[0])).sum())
    # What is below rounding is no direction of the update.
    s = torch.where(torch.arange(rank) < effective, s, torch.zeros(()))
    exact = values.detach().double().cpu()
    energy = float(exact.square().sum())
    a_RI, b_OR = divided((u, s, vh), scale=scale, split=split)
    held = float(s.double().square().sum())
    b_OR = b_OR * _stretch(rescale, exact, mask, (a_RI, b_OR), scale, energy, held)
    whole = b_OR
    if refine is not None:
        a_RI, b_OR = refine(a_RI, b_OR, effective)
    there = scale * on_mask(a_RI.double(), b_OR.double(), mask)
    left = None
    if residual == "fold":
        left = exact.float()
    elif residual == "keep":
        left = (exact - there).float()
    error = _error(exact, there, a_RI, b_OR, scale)
    return Handoff(
        a_RI=a_RI.contiguous(),
        b_OR=b_OR.contiguous(),
        kept=_share(s, energy) if torch.equal(b_OR, whole) else max(0.0, 1.0 - error**2),
        error=error,
        norm=math.sqrt(energy),
        rank_in_effect=effective,
        residual=left,
    )


def divided(found: Triplets, *, scale: float, split: Split) -> tuple[Tensor, Tensor]:
    """(a_RI, b_OR) with `scale * b_OR @ a_RI = u diag(s) vh`."""
    u, s, vh = found
    s = s / scale
    if split == "b":
        return vh.contiguous(), (u * s).contiguous()
    root = s.sqrt()
    return (root[:, None] * vh).contiguous(), (u * root).contiguous()


def on_mask(a_RI: Tensor, b_OR: Tensor, mask: Mask) -> Tensor:
    """`(B A)` at the mask's entries, `[Z]`, without the dense product."""
    columns, rows = mask.positions % mask.shape[1], mask.positions // mask.shape[1]
    found = torch.zeros(mask.nnz, dtype=a_RI.dtype)
    for r in range(a_RI.shape[0]):
        found += b_OR[rows, r] * a_RI[r, columns]
    return found


def _stretch(
    rescale: Rescale,
    values: Tensor,
    mask: Mask,
    factors: tuple[Tensor, Tensor],
    scale: float,
    energy: float,
    held: float,
) -> float:
    if rescale == "none" or not held:
        return 1.0
    if rescale == "norm":
        return math.sqrt(energy / held)
    there = scale * on_mask(*factors, mask).double()
    return float((values * there).sum() / there.square().sum())


def _share(s: Tensor, energy: float) -> float:
    # An untouched matrix has no energy to lose: zero factors carry all of it.
    return min(1.0, float(s.double().square().sum()) / energy) if energy else 1.0


def _error(values: Tensor, there: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> float:
    """`||dW - P|| / ||dW||` for `P = scale B A`, which is `there` on the mask, without a dense P.

    `||dW - P||^2 = ||dW - M o P||^2 + ||P||^2 - ||M o P||^2`, in float64.
    """
    energy = float(values.square().sum())
    if not energy:
        return 0.0
    a, b = a_RI.double(), b_OR.double()
    whole = scale**2 * float(((b.t() @ b) * (a @ a.t())).sum())
    outside = max(0.0, whole - float(there.square().sum()))
    # Below what float64 can tell of the two sums there is nothing.
    outside = outside if outside > 1e-13 * whole else 0.0
    return math.sqrt((float((values - there).square().sum()) + outside) / energy)
