"""The low-rank layer `y = x W^T + b + scale x A^T B^T`, and the random init of A.

O, I: the weight's rows and columns, out and in. R: the rank. N: tokens.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from slora.errors import BadRank
from slora.layers.base_layers import (
    add_product,
    add_product_back,
    get_features,
    is_transposed,
)
from slora.layers.experts import AddedProduct
from slora.layers.shapes import get_expert_shape, get_factor_shapes


class LoraLinear(nn.Module):
    """A frozen linear layer or Conv1D with factors `a_RI [R, I]` and `b_OR [O, R]`, float32.

    On fused experts, `[E R, I]` and `[E O, R]`: they ask for the adapted weight, and this layer's
    own forward is not used.
    """

    saved_entries: tuple[Tensor, Tensor] | None = None
    """Positions changed by a residual, and their original bits: see `slora.layers.install`."""

    def __init__(self, base: Any, *, a_RI: Tensor, b_OR: Tensor, scale: float) -> None:
        super().__init__()
        self._wrap_layer(base, a_RI, b_OR, scale)
        device = base.weight.device
        self.a_RI = nn.Parameter(a_RI.to(device=device, dtype=torch.float32, copy=True))
        self.b_OR = nn.Parameter(b_OR.to(device=device, dtype=torch.float32, copy=True))

    def _wrap_layer(self, base: Any, a_RI: Tensor, b_OR: Tensor, scale: float) -> None:
        self.out_features, self.in_features = layer_shape = get_features(base)
        self.rank = b_OR.shape[1]
        if (a_RI.shape, b_OR.shape) != get_factor_shapes(layer_shape, self.rank):
            shapes = f"A {tuple(a_RI.shape)}, B {tuple(b_OR.shape)}"
            raise ValueError(f"{shapes} do not fit a layer of {layer_shape}")
        self.scale, self.conv1d = scale, is_transposed(base)
        self.weight, self.bias = base.weight, base.bias
        # The tuple keeps the wrapped layer from becoming a child module.
        self.wrapped = (base,)

    def get_factors(self) -> tuple[Tensor, Tensor]:
        """Return (a_RI, b_OR), float32, with gradients to what is trained of them."""
        return self.a_RI, self.b_OR

    def get_operands(self) -> tuple[Tensor, Tensor]:
        """Return what the product takes the factors from, and gives their gradients to."""
        return self.get_factors()

    def cast_operands(self, a: Tensor, b: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return `[R, I]` and `scale [O, R]` in the dtype of the product."""
        return a.to(dtype), (b * self.scale).to(dtype)

    def reduce_a(self, grad_RI: Tensor) -> Tensor:
        """Return the gradient of the first operand from that of A, before it is converted."""
        return grad_RI

    def reduce_b(self, grad_RO: Tensor) -> Tensor:
        """Return the gradient of the second operand from that of B, which is still transposed."""
        return grad_RO.t()

    def forward(self, x: Tensor) -> Tensor:
        # A view that a Function itself returns may not be changed in place, as some models do.
        y_NO: Tensor = _LowRankProduct.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, self.in_features), *self.get_operands(), self.bias, self
        )
        return y_NO.view(*x.shape[:-1], self.out_features)

    def compute_weight(self) -> Tensor:
        """Return `W + scale B A` in the layout of W."""
        weight: Tensor = AddedProduct.apply(  # type: ignore[no-untyped-call]
            *self.get_factors(), self.weight, self.scale, self.conv1d
        )
        return weight

    def extra_repr(self) -> str:
        return (
            f"in={self.in_features}, out={self.out_features}, rank={self.rank}, scale={self.scale}"
        )


class _LowRankProduct(torch.autograd.Function):
    """The product above, with the gradients of x, of both operands and of the bias.

    Saved for backward: x, `h = x A^T`, and both factors in the dtype of the product, cast once. The
    thin product comes first and the wide one is added to it in place: no tensor of the layer's
    width is allocated or read twice.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, layer: LoraLinear
    ) -> Tensor:
        dtype = _choose_product_dtype(x_NI)
        x_NI, (a_RI, b_OR) = x_NI.to(dtype), layer.cast_operands(a, b, dtype)
        h_NR = nn.functional.linear(x_NI, a_RI)
        y_NO = nn.functional.linear(h_NR, b_OR, None if bias is None else bias.to(dtype))
        add_product(y_NO, x_NI, layer.weight, conv1d=layer.conv1d)
        ctx.save_for_backward(x_NI, h_NR, a_RI, b_OR)
        ctx.layer, ctx.operands_dtype = layer, a.dtype
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, h_NR, a_RI, b_OR = ctx.saved_tensors
        layer: LoraLinear = ctx.layer
        grad_x = grad_a = grad_b = grad_bias = None
        grad_NR = grad_NO @ b_OR
        if ctx.needs_input_grad[0]:
            grad_x = grad_NR @ a_RI
            add_product_back(grad_x, grad_NO, layer.weight, conv1d=layer.conv1d)
        if ctx.needs_input_grad[1]:
            grad_a = layer.reduce_a(grad_NR.t() @ x_NI).to(ctx.operands_dtype)
        if ctx.needs_input_grad[2]:
            # A product of long rows: B's gradient is made transposed.
            grad_b = layer.reduce_b(h_NR.t() @ grad_NO).to(ctx.operands_dtype).mul_(layer.scale)
        if ctx.needs_input_grad[3]:
            grad_bias = grad_NO.sum(0)
        return grad_x, grad_a, grad_b, grad_bias, None


def _choose_product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that the product computes in: that of x, or the one of an autocast."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def init_factors(
    *, seed: int, name: str, shape: tuple[int, int], rank: int
) -> tuple[Tensor, Tensor]:
    """Return LoRA's own init: A uniform in +-1/sqrt(in) (Kaiming, a = sqrt 5), B zero.

    The seed and the layer's name determine A: it is equal on every rank and different in every
    layer, and in every expert of fused ones.
    """
    if not 1 <= rank <= min(get_expert_shape(shape)):
        raise BadRank(rank, get_expert_shape(shape), name)
    key = hashlib.sha256(f"{seed}\0{name}\0lora".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
    a_shape, b_shape = get_factor_shapes(shape, rank)
    bound = 1 / math.sqrt(shape[1])
    a_RI = (2 * torch.rand(a_shape, generator=generator) - 1) * bound
    return a_RI, torch.zeros(b_shape)
