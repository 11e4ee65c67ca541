"""Where a low-rank stage starts in one layer, and how the frozen weight is moved for it.

O, I: rows and columns of the weight. R: the rank. Z: entries of the sparse stage's mask.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LowRankInit:
    """`W + residual - scale b_OR a_RI (if minus)` is frozen; `scale B A` is trained beside it.

    `a_RI`, `b_OR`: float32, the factors' first values.
    `minus`: their product is taken out of the weight, so that the model at the start computes what
    it did before (PiSSA, LoRA-GA), or what the sparse stage left (`residual: fold`).
    `residual`: float32 `[Z]`, values on the mask that are added to the weight, or None.
    """

    a_RI: Tensor
    b_OR: Tensor
    subtract_from_base: bool = False
    residual: Tensor | None = None
