"""`gradient`: the largest mean absolute gradient, `mean |g|`, as in SIFT and SHiRA-Grad."""

from __future__ import annotations

from torch import Tensor

from slora.masks.strategy import Scorer


def _compute_unit(weight_OI: Tensor, gradient_OI: Tensor) -> Tensor:
    return gradient_OI.abs()


def _compute_score(weight_OI: Tensor, total_OI: Tensor | None, units: int) -> Tensor:
    assert total_OI is not None
    return total_OI / units


GRADIENT = Scorer("gradient", finish=_compute_score, unit=_compute_unit)
