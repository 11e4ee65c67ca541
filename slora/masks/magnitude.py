"""`magnitude`: the largest weights, `|W|`. Needs no data."""

from __future__ import annotations

from torch import Tensor

from slora.masks.strategy import Scorer


def _compute_score(weight_OI: Tensor, total_OI: Tensor | None, units: int) -> Tensor:
    return weight_OI.abs()


MAGNITUDE = Scorer("magnitude", finish=_compute_score)
