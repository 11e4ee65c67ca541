"""What a strategy is: how much each entry of a weight matters, from the weight and its gradients.

O, I: rows and columns of the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scorer:
    """A score for every entry of a weight; the highest ones are trained.

    `unit(weight_OI, gradient_OI)`: what one calibration sequence adds, `[O, I]`, given the gradient
    of that sequence's mean loss. None where the score needs no data.
    `finish(weight_OI, total_OI, units)`: the score, `[O, I]`, from the sum of all units (None
    without data) and their number over all ranks.
    """

    name: str
    finish: Callable[[Tensor, Tensor | None, int], Tensor]
    unit: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def needs_data(self) -> bool:
        """Whether the score is taken from gradients."""
        return self.unit is not None
