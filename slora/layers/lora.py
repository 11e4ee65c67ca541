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
from slora.layers.base_layers import get_features, is_conv1d, multiply, multiply_back


class LoraLinear(nn.Module):
    """A frozen linear layer or Conv1D with factors `a_RI [R, I]` and `b_OR [O, R]`, float32."""

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
        if a_RI.shape[1] != layer_shape[1] or b_OR.shape != (layer_shape[0], a_RI.shape[0]):
            shapes = f"A {tuple(a_RI.shape)}, B {tuple(b_OR.shape)}"
            raise ValueError(f"{shapes} do not fit a layer of {layer_shape}")
        self.rank, self.scale, self.conv1d = a_RI.shape[0], scale, is_conv1d(base)
        self.weight, self.bias = base.weight, base.bias
        # The tuple keeps the wrapped layer from becoming a child module.
        self.wrapped = (base,)

    def get_factors(self) -> tuple[Tensor, Tensor]:
        """Return (a_RI, b_OR) as the product uses them."""
        return self.a_RI, self.b_OR

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _LowRankProduct.apply(  # type: ignore[no-untyped-call]
            x, *self.get_factors(), self.weight, self.bias, self.scale, self.conv1d
        )
        return y

    def extra_repr(self) -> str:
        return (
            f"in={self.in_features}, out={self.out_features}, rank={self.rank}, scale={self.scale}"
        )


class _LowRankProduct(torch.autograd.Function):
    """The product above, with the gradients of x, of both factors and of the bias.

    Saved for backward: x, `h = A x^T`, and the parameters themselves. Everything of width R has
    the layout `[R, N]`: on a CPU such products are up to three times faster than their transposes,
    and both updates are added in place, so no tensor of the layer's width is allocated twice.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a_RI: Tensor, b_OR: Tensor, weight: Tensor,
                bias: Tensor | None, scale: float, conv1d: bool) -> Tensor:  # fmt: skip
        y = multiply(x, weight, bias, conv1d=conv1d)
        x_NI = x.reshape(-1, x.shape[-1])
        # Use the dtype of y, which autocast may have chosen.
        h_RN = a_RI.to(y.dtype) @ x_NI.to(y.dtype).t()
        y.view(-1, y.shape[-1]).addmm_(h_RN.t(), b_OR.to(y.dtype).t(), alpha=scale)
        # Saving the parameters themselves, not copies, lets ZeRO-3 gather them again for backward.
        ctx.save_for_backward(x, h_RN, a_RI, b_OR, weight)
        ctx.scale, ctx.conv1d = scale, conv1d
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, h_RN, a_RI, b_OR, weight = ctx.saved_tensors
        grad_NO, x_NI = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_x = grad_a = grad_b = grad_bias = None
        grad_RN = b_OR.to(grad.dtype).t() @ grad_NO.t()
        if ctx.needs_input_grad[0]:
            grad_x = multiply_back(grad, weight, conv1d=ctx.conv1d)
            flat = grad_x.view(-1, grad_x.shape[-1])
            flat.addmm_(grad_RN.t(), a_RI.to(grad.dtype), alpha=ctx.scale)
        if ctx.needs_input_grad[1]:
            grad_a = (grad_RN @ x_NI.to(grad.dtype)).to(a_RI.dtype).mul_(ctx.scale)
        if ctx.needs_input_grad[2]:
            grad_b = (h_RN @ grad_NO).to(b_OR.dtype).mul_(ctx.scale).t()
        if ctx.needs_input_grad[4]:
            grad_bias = grad_NO.sum(0)
        return grad_x, grad_a, grad_b, None, grad_bias, None, None


def init_factors(
    *, seed: int, name: str, shape: tuple[int, int], rank: int
) -> tuple[Tensor, Tensor]:
    """Return LoRA's own init: A uniform in +-1/sqrt(in) (Kaiming, a = sqrt 5), B zero.

    The seed and the layer's name determine A: it is equal on every rank and different in every
    layer.
    """
    out_features, in_features = shape
    if not 1 <= rank <= min(shape):
        raise BadRank(rank, shape, name)
    key = hashlib.sha256(f"{seed}\0{name}\0lora".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
    bound = 1 / math.sqrt(in_features)
    a_RI = (2 * torch.rand(rank, in_features, generator=generator) - 1) * bound
    return a_RI, torch.zeros(out_features, rank)
