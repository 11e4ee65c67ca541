"""Linear layers of a sharded base that no method adapts, mostly the output projection.

Torch's own product saves a view of the gathered weight for its backward, so that the full weight
stays in memory where ZeRO-3 means to release it, and is gathered a second time beside it. Here the
parameter itself is saved, which is empty between the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from slora.layers.base_layers import multiply, multiply_back


@contextmanager
def drop_gathered_weights(model: nn.Module) -> Iterator[None]:
    """Inside the block, the model's sharded linear layers save no weight for their backward."""
    layers = [module for module in model.modules() if _is_sharded(module)]
    for layer in layers:
        layer.forward = _make_forward(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_sharded(module: nn.Module) -> bool:
    return type(module) is nn.Linear and hasattr(module.weight, "ds_id")


def _make_forward(layer: nn.Module) -> Any:
    def forward(x: Tensor) -> Tensor:
        if layer.weight.requires_grad:  # a mask's scores are asked for: the gradient is wanted
            return nn.Linear.forward(cast(nn.Linear, layer), x)
        # A view that a Function itself returns may not be changed in place, as some models do.
        y_NO: Tensor = _FrozenProduct.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, x.shape[-1]), layer.weight, layer.bias
        )
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    return forward


class _FrozenProduct(Function):
    """`x W^T + b`, `[N, I]` to `[N, O]`, with the gradient of x only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return multiply(x, weight, bias, conv1d=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (weight,) = ctx.saved_tensors
        needs_grad = ctx.needs_input_grad[0]
        return multiply_back(grad, weight, conv1d=False) if needs_grad else None, None, None
