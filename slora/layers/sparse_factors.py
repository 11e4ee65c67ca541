"""Sparse factors: A and B of the low-rank update, each trained under its own mask.

O, I: the weight's rows and columns. R: the rank. Za, Zb: entries of the masks of A and of B.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from slora.layers.lora import LoraLinear
from slora.layers.patterns import count_entries
from slora.masks.mask import draw_random_mask
from slora.masks.selection import select_top


class SparseFactorLinear(LoraLinear):
    """A LoRA layer in which only selected entries of A and B are trained: `a_values`, `b_values`.

    They are float32 `[Za]` and `[Zb]`. A scatter expands the factors for the duration of a
    product; they are thin, and their gradient is gathered at the selected entries.
    """

    a_values: nn.Parameter
    b_values: nn.Parameter
    a_positions: Tensor
    b_positions: Tensor

    def __init__(
        self, base: Any, *, a_RI: Tensor, b_OR: Tensor, scale: float, density: float,
        seed: int, name: str,
    ) -> None:  # fmt: skip
        nn.Module.__init__(self)
        self._wrap_layer(base, a_RI, b_OR, scale)
        device = base.weight.device
        self.factor_shapes = (a_RI.shape[0], a_RI.shape[1]), (b_OR.shape[0], b_OR.shape[1])
        for side, factor in (("a", a_RI), ("b", b_OR)):
            mask_name = f"{name}.{'a_RI' if side == 'a' else 'b_OR'}"
            positions = choose_factor_positions(factor, density=density, seed=seed, name=mask_name)
            values = factor.flatten()[positions].to(device=device, dtype=torch.float32)
            self.register_parameter(f"{side}_values", nn.Parameter(values))
            self.register_buffer(f"{side}_positions", positions.to(device), persistent=False)

    def get_factors(self) -> tuple[Tensor, Tensor]:
        a_shape, b_shape = self.factor_shapes
        a = expand_to_dense(self.a_values, self.a_positions, a_shape)
        return a, expand_to_dense(self.b_values, self.b_positions, b_shape)


def choose_factor_positions(factor: Tensor, *, density: float, seed: int, name: str) -> Tensor:
    """Return the trained entries of a factor: int64, row-major, ascending.

    These are the largest initial entries by absolute value. A factor that is all zero, as LoRA's B
    is initially, has no largest entries and gets a random mask from (seed, name, shape).
    """
    shape = (factor.shape[0], factor.shape[1])
    if not factor.any():
        return draw_random_mask(seed=seed, name=name, shape=shape, density=density).positions
    return select_top(factor.detach().abs().float().cpu().flatten(), count_entries(shape, density))


def apply_factor_masks(
    a_RI: Tensor, b_OR: Tensor, density: float, seed: int, name: str
) -> tuple[Tensor, Tensor]:
    """Return the factors with zeros outside the masks that a layer of this name would have."""
    masked_factors = []
    for side, factor in (("a_RI", a_RI), ("b_OR", b_OR)):
        positions = choose_factor_positions(
            factor, density=density, seed=seed, name=f"{name}.{side}"
        )
        shape = (factor.shape[0], factor.shape[1])
        masked_factors.append(expand_to_dense(factor.flatten()[positions], positions, shape))
    return masked_factors[0], masked_factors[1]


def measure_energy_share(factor: Tensor, positions: Tensor) -> float:
    """Return the share of a factor's squared norm inside its mask; 1.0 for a factor of zeros."""
    total = float(factor.double().square().sum())
    return float(factor.flatten()[positions].double().square().sum()) / total if total else 1.0


def expand_to_dense(values: Tensor, positions: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the factor: `values` at `positions`, zero elsewhere. Differentiable in `values`."""
    flat = values.new_zeros(shape[0] * shape[1])
    return flat.scatter(0, positions, values).view(shape)
