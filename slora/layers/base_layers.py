"""The plain layers that are adapted: `nn.Linear`, and transformers' `Conv1D` of the GPT-2 family.

O, I: rows and columns of the weight as a matrix that maps I to O. `nn.Linear` stores it as [O, I],
`Conv1D` as [I, O]. Everything else in this package speaks of [O, I].
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, told by its name and fields: torch has no such layer."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def is_adaptable(module: nn.Module) -> bool:
    """Whether the method's layers can stand in for this one."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def get_features(module: Any) -> tuple[int, int]:
    """(O, I). Raises TypeError for any other kind of module."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if is_conv1d(module):
        return int(module.nf), int(module.nx)
    raise TypeError(f"a {type(module).__name__} can't be adapted: only linear layers and Conv1D")


def get_weight_matrix(module: Any) -> Tensor:
    """The weight as [O, I], a view."""
    weight: Tensor = module.weight
    return weight.t() if is_conv1d(module) else weight


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, *, conv1d: bool) -> Tensor:
    """`x W^T + b`, in x's type, `[..., I]` to `[..., O]`."""
    # `linear` wants [O, I]; the transpose of a Conv1D's weight is a view, and costs nothing.
    return nn.functional.linear(x, (weight.t() if conv1d else weight).to(x.dtype), bias)


def multiply_back(grad: Tensor, weight: Tensor, *, conv1d: bool) -> Tensor:
    """`g W`, the gradient of x, `[..., O]` to `[..., I]`."""
    return grad @ (weight.t() if conv1d else weight).to(grad.dtype)
