"""`fisher`: the diagonal of the empirical Fisher information, `mean g^2` (FISH mask, 2021)."""

from __future__ import annotations

from torch import Tensor

from slora.masks.strategy import Scorer


def _compute_unit(weight_OI: Tensor, gradient_OI: Tensor) -> Tensor:
    # Square in float64: the square of a small gradient underflows in float32.
    return gradient_OI.double().square()


def _compute_score(weight_OI: Tensor, total_OI: Tensor | None, units: int) -> Tensor:
    assert total_OI is not None
    return total_OI / units


FISHER = Scorer("fisher", finish=_compute_score, unit=_compute_unit)
