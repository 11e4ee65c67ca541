"""`snip`: connection sensitivity, `|mean g w|`: the weight's effect on the loss (SNIP, 2019)."""

from __future__ import annotations

from torch import Tensor

from slora.masks.strategy import Scorer


def _compute_unit(weight_OI: Tensor, gradient_OI: Tensor) -> Tensor:
    return gradient_OI.double() * weight_OI.double()


def _compute_score(weight_OI: Tensor, total_OI: Tensor | None, units: int) -> Tensor:
    assert total_OI is not None
    return (total_OI / units).abs()


SNIP = Scorer("snip", finish=_compute_score, unit=_compute_unit)
