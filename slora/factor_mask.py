"""Sparse factors: A and B of the low-rank update, each trained under a mask of its own.

O, I: the weight's rows and columns. R: the rank. Za, Zb: entries of the masks of A and of B.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from slora.lowrank import LoraLinear
from slora.mask import random_mask
from slora.masks.choose import top
from slora.names import entries


class SparseFactorLinear(LoraLinear):
    """A LoRA layer of which only chosen entries of A and B are trained: `a_values`, `b_values`.

    Float32 `[Za]` and `[Zb]`. The dense factors are made by a scatter for the length of a product;
    they are thin, and their gradient is gathered at the chosen entries.
    """

    a_values: nn.Parameter
    b_values: nn.Parameter
    a_places: Tensor
    b_places: Tensor

    def __init__(
        self, base: Any, *, a_RI: Tensor, b_OR: Tensor, scale: float, density: float,
        seed: int, name: str,
    ) -> None:  # fmt: skip
        nn.Module.__init__(self)
        self._stand_in(base, a_RI, b_OR, scale)
        device = base.weight.device
        for side, factor in (("a", a_RI), ("b", b_OR)):
            key = f"{name}.{'a_RI' if side == 'a' else 'b_OR'}"
            places = factor_places(factor, density=density, seed=seed, name=key)
            values = factor.flatten()[places].to(device=device, dtype=torch.float32)
            self.register_parameter(f"{side}_values", nn.Parameter(values))
            self.register_buffer(f"{side}_places", places.to(device), persistent=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        a = dense(self.a_values, self.a_places, (self.rank, self.in_features))
        return a, dense(self.b_values, self.b_places, (self.out_features, self.rank))


def factor_places(factor: Tensor, *, density: float, seed: int, name: str) -> Tensor:
    """Which entries of a factor are trained, row-major, ascending, int64.

    The largest at the start, by absolute value; a factor that is all zero, as LoRA's B is at first,
    has none that is larger, and gets a random mask from (seed, name, shape).
    """
    shape = (factor.shape[0], factor.shape[1])
    if not factor.any():
        return random_mask(seed=seed, name=name, shape=shape, density=density).positions
    return top(factor.detach().abs().float().cpu().flatten(), entries(shape, density))


def masked(
    a_RI: Tensor, b_OR: Tensor, density: float, seed: int, name: str
) -> tuple[Tensor, Tensor]:
    """The factors with nothing outside the masks that a layer of this name would give them."""
    found = []
    for side, factor in (("a_RI", a_RI), ("b_OR", b_OR)):
        places = factor_places(factor, density=density, seed=seed, name=f"{name}.{side}")
        shape = (factor.shape[0], factor.shape[1])
        found.append(dense(factor.flatten()[places], places, shape))
    return found[0], found[1]


def kept_energy(factor: Tensor, places: Tensor) -> float:
    """Share of a factor's squared norm that its mask keeps; 1.0 for a factor of zeros."""
    whole = float(factor.double().square().sum())
    return float(factor.flatten()[places].double().square().sum()) / whole if whole else 1.0


def dense(values: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
    """The factor itself: `values` at `places`, zero elsewhere. Differentiable in `values`."""
    flat = values.new_zeros(shape[0] * shape[1])
    return flat.scatter(0, places, values).view(shape)
