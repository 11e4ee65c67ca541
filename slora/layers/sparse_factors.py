"""Sparse factors: A and B of the low-rank update, each trained at the entries of a mask only.

O, I: the weight's rows and columns. R: the rank. Za, Zb: entries of the masks of A and of B.

The factors start from any matrices; what lies outside the masks stays as it starts. That is zero in
kind lora, whose update is then sparse in its factors. After a hand-off it is the update's own best
factors, which every worker has, so that only the masks' entries are trained and travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from slora.layers.base_layers import get_features
from slora.layers.lora import LoraLinear
from slora.masks.factor_mask import FactorMaskRule


class SparseFactorLinear(LoraLinear):
    """A LoRA layer in which only some entries of A and B are trained: `a_values`, `b_values`.

    They are float32 `[Za]` and `[Zb]`, and the factors' own entries, not changes of them.
    `dense_a_RI` and `dense_b_OR`, float32, hold the other entries. The product reads copies in its
    own dtype, into which a forward writes the values: it costs what LoRA's does at this rank, and
    its gradients are read at the masks.
    """

    a_values: nn.Parameter
    b_values: nn.Parameter
    a_positions: Tensor
    b_positions: Tensor
    b_turned_positions: Tensor
    """`b_positions` in the transpose of B, in the same order."""
    dense_a_RI: Tensor
    dense_b_OR: Tensor

    def __init__(
        self, base: Any, *, a_RI: Tensor, b_OR: Tensor, scale: float, rule: FactorMaskRule,
        name: str,
    ) -> None:  # fmt: skip
        nn.Module.__init__(self)
        self._wrap_layer(base, a_RI, b_OR, scale)
        device = base.weight.device
        positions = rule.draw(name, get_features(base), self.rank)
        sides = zip(("a", "b"), ("a_RI", "b_OR"), (a_RI, b_OR), positions, strict=True)
        for side, short, factor, entries in sides:
            dense = factor.to(device=device, dtype=torch.float32, copy=True).contiguous()
            entries = entries.to(device)
            self.register_parameter(f"{side}_values", nn.Parameter(dense.view(-1)[entries]))
            self.register_buffer(f"{side}_positions", entries, persistent=False)
            self.register_buffer(f"dense_{short}", dense, persistent=False)
        rows = self.b_positions.div(self.rank, rounding_mode="floor")
        turned = self.b_positions % self.rank * b_OR.shape[0] + rows
        fits = b_OR.numel() < 2**31
        self.register_buffer("b_turned_positions", turned.int() if fits else turned, False)
        self._written: tuple[Tensor, Tensor] | None = None

    def get_operands(self) -> tuple[Tensor, Tensor]:
        return self.a_values, self.b_values

    def cast_operands(self, a: Tensor, b: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return both factors with these values written into them.

        They are the same tensors in every forward. Between two steps of the optimizer each forward
        writes the values that are there, so that what a backward has saved of them stays true.
        """
        if self._written is None or not _is_like(self._written[0], self.dense_a_RI, dtype):
            self._written = super().cast_operands(self.dense_a_RI, self.dense_b_OR, dtype)
        # `data`: the writing is no change that autograd must guard against.
        a_RI, b_OR = self._written[0].data, self._written[1].data
        a_RI.view(-1).index_copy_(0, self.a_positions, a.to(dtype))
        b_OR.view(-1).index_copy_(0, self.b_positions, (b * self.scale).to(dtype))
        return a_RI, b_OR

    def reduce_a(self, grad_RI: Tensor) -> Tensor:
        return grad_RI.view(-1).index_select(0, self.a_positions)

    def reduce_b(self, grad_RO: Tensor) -> Tensor:
        return grad_RO.view(-1).index_select(0, self.b_turned_positions)

    def get_factors(self) -> tuple[Tensor, Tensor]:
        factors: tuple[Tensor, Tensor] = _WrittenEntries.apply(  # type: ignore[no-untyped-call]
            self.a_values, self.b_values, self
        )
        return factors

    def fill_factors(self, a_values: Tensor, b_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of both factors with these values in them, float32 on the CPU."""
        pairs = (self.dense_a_RI, self.a_positions), (self.dense_b_OR, self.b_positions)
        factors = []
        for (dense, positions), values in zip(pairs, (a_values, b_values), strict=True):
            flat = dense.detach().to("cpu", copy=True).view(-1)
            flat[positions.cpu()] = values.cpu().float()
            factors.append(flat.view(dense.shape))
        return factors[0], factors[1]


class _WrittenEntries(torch.autograd.Function):
    """Both factors, float32, with the values in them, and the gradients of the values."""

    @staticmethod
    def forward(
        ctx: Any, a_values: Tensor, b_values: Tensor, layer: SparseFactorLinear
    ) -> tuple[Tensor, Tensor]:
        ctx.layer = layer
        a, b = layer.dense_a_RI.clone(), layer.dense_b_OR.clone()
        a.view(-1).index_copy_(0, layer.a_positions, a_values)
        b.view(-1).index_copy_(0, layer.b_positions, b_values)
        # A frozen factor needs no gradient, and the product computes none for it.
        frozen = zip((a, b), ctx.needs_input_grad, strict=False)
        ctx.mark_non_differentiable(*(factor for factor, needed in frozen if not needed))
        return a, b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_a: Tensor, grad_b: Tensor) -> tuple[Tensor | None, ...]:
        layer, a, b = ctx.layer, None, None
        if ctx.needs_input_grad[0]:
            a = grad_a.reshape(-1).index_select(0, layer.a_positions)
        if ctx.needs_input_grad[1]:
            b = grad_b.reshape(-1).index_select(0, layer.b_positions)
        return a, b, None


def _is_like(written: Tensor, dense: Tensor, dtype: torch.dtype) -> bool:
    return written.dtype == dtype and written.device == dense.device


def mask_factor(factor: Tensor, positions: Tensor) -> Tensor:
    """Return the factor with zeros outside a mask."""
    shape = (factor.shape[0], factor.shape[1])
    return expand_to_dense(factor.reshape(-1)[positions], positions, shape)


def is_zero_outside(factor: Tensor, positions: Tensor) -> bool:
    """Return whether all entries outside a mask are zero."""
    return torch.equal(mask_factor(factor, positions), factor)


def measure_energy_share(factor: Tensor, positions: Tensor) -> float:
    """Return the share of a factor's squared norm inside its mask; 1.0 for a factor of zeros."""
    total = float(factor.double().square().sum())
    return float(factor.flatten()[positions].double().square().sum()) / total if total else 1.0


def expand_to_dense(values: Tensor, positions: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the factor: `values` at `positions`, zero elsewhere."""
    flat = values.new_zeros(shape[0] * shape[1])
    return flat.index_copy_(0, positions, values).view(shape[0], shape[1])
