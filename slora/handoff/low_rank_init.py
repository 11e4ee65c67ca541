"""The initial state of a low-rank stage in one layer, and its change of the frozen weight.

O, I: rows and columns of the weight. R: the rank. Z: entries of the sparse stage's mask.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LowRankInit:
    """`W + residual - scale b_OR a_RI (if subtract_from_base)` is frozen; `scale B A` is trained.

    `a_RI`, `b_OR`: float32, the initial factors.
    `subtract_from_base`: subtract their product from the weight, so that the model initially
    computes what it did before (PiSSA, LoRA-GA), or what the sparse stage produced (`residual:
    fold`).
    `residual`: float32 `[Z]`, values on the mask that are added to the weight, or None.
    """

    a_RI: Tensor
    b_OR: Tensor
    subtract_from_base: bool = False
    residual: Tensor | None = None
