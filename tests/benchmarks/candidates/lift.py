"""`lift`: the largest entries of the weight after rank reduction, `|W_r|` (LIFT, 2506.00772).

The mask is drawn once; the paper draws it anew from time to time.
"""

from __future__ import annotations

from torch import Tensor

from slora.handoff.svd import compute_dense_svd
from slora.masks.strategy import Scorer

REDUCED_RANK = 12
"""Of W_r: 1/32 of MiniLM's width, as the authors' 128 is of a Llama's."""


def _compute_score(weight_OI: Tensor, total_OI: Tensor | None, units: int) -> Tensor:
    u, s, vh = compute_dense_svd(weight_OI.float(), min(REDUCED_RANK, *weight_OI.shape))
    return ((u * s) @ vh).abs()


LIFT = Scorer("lift", finish=_compute_score)
