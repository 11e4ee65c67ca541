"""A mask strategy: the importance of each entry of a weight, from the weight and its gradients.

O, I: rows and columns of the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scorer:
    """A score for every entry of a weight; the entries with the highest scores are trained.

    `unit(weight_OI, gradient_OI)`: the contribution of one calibration sequence, `[O, I]`, given
    the gradient of that sequence's mean loss. None if the score needs no data.
    `finish(weight_OI, total_OI, units)`: the score, `[O, I]`, from the sum of all units (None
    without data) and their number over all ranks.
    """

    name: str
    finish: Callable[[Tensor, Tensor | None, int], Tensor]
    unit: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def needs_data(self) -> bool:
        """Return True if the score is computed from gradients."""
        return self.unit is not None
