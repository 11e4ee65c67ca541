"""The base layers that can be adapted: `nn.Linear`, and the `Conv1D` of transformers' GPT-2 family.

O, I: rows and columns of the weight as a matrix that maps I to O. `nn.Linear` stores it as [O, I],
`Conv1D` as [I, O]. All other modules of this package use [O, I].
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def is_conv1d(module: nn.Module) -> bool:
    """Return True for transformers' Conv1D, by name and fields: torch has no such layer."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def is_adaptable(module: nn.Module) -> bool:
    """Return True if one of the method's layers can replace this module."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def get_features(module: Any) -> tuple[int, int]:
    """Return (O, I). Raise TypeError for any other kind of module."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if is_conv1d(module):
        return int(module.nf), int(module.nx)
    raise TypeError(
        f"a {type(module).__name__} can't be adapted: only linear layers and Conv1D can"
    )


def get_weight_matrix(module: Any) -> Tensor:
    """Return the weight as [O, I], a view."""
    weight: Tensor = module.weight
    return weight.t() if is_conv1d(module) else weight


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, *, conv1d: bool) -> Tensor:
    """Return `x W^T + b` in x's dtype, `[..., I]` to `[..., O]`."""
    # `linear` expects [O, I]; the transpose of a Conv1D's weight is a view and costs nothing.
    return nn.functional.linear(x, (weight.t() if conv1d else weight).to(x.dtype), bias)


def multiply_back(grad: Tensor, weight: Tensor, *, conv1d: bool) -> Tensor:
    """Return `g W`, the gradient of x, `[..., O]` to `[..., I]`."""
    return grad @ (weight.t() if conv1d else weight).to(grad.dtype)
