"""The hand-off: the sparse stage's dense update, split into the low-rank stage's two factors.

O, I: rows and columns of the update. R: the rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from slora.errors import BadRank


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


def factor(
    delta_OI: Tensor, *, rank: int, scale: float = 1.0, split: Literal["balanced", "b"] = "balanced"
) -> Factors:
    """Split `delta_OI` into `scale * b_OR @ a_RI`, in float32, by its singular values.

    `balanced` gives each factor the values' roots, `b` gives them all to B (as PEFT's conversion
    does). Singular vectors have a free sign; it is fixed here so that equal updates give equal
    factors on every rank. Raises BadRank.
    """
    shape = (delta_OI.shape[0], delta_OI.shape[1])
    if not 1 <= rank <= min(shape):
        raise BadRank(rank, shape)
    u, s, vh = _svd(delta_OI.float())
    energy = s.double().square()
    # An untouched matrix has no energy to lose: zero factors carry all of it.
    kept = float(energy[:rank].sum() / energy.sum()) if energy.sum() > 0 else 1.0
    b_OR, a_RI, s = u[:, :rank], vh[:rank], s[:rank] / scale
    sign = torch.where(a_RI.gather(1, a_RI.abs().argmax(1, keepdim=True)) < 0, -1.0, 1.0)
    b_OR, a_RI = b_OR * sign.t(), a_RI * sign
    if split == "b":
        return Factors(a_RI.contiguous(), (b_OR * s).contiguous(), kept)
    root = s.sqrt()
    return Factors((root[:, None] * a_RI).contiguous(), (b_OR * root).contiguous(), kept)


def _svd(delta_OI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD. LAPACK takes a tall matrix three times faster than the same one lying."""
    if delta_OI.shape[0] >= delta_OI.shape[1]:
        u, s, vh = torch.linalg.svd(delta_OI, full_matrices=False)
        return u, s, vh
    v, s, uh = torch.linalg.svd(delta_OI.t(), full_matrices=False)
    return uh.t(), s, v.t()
