"""The base layers that can be adapted: `nn.Linear`, transformers' Conv1D, and fused experts.

O, I: rows and columns of the weight as a matrix that maps I to O. E: experts. `nn.Linear` stores it
as [O, I], `Conv1D` as [I, O], fused experts as [E, O, I] or, transposed, as [E, I, O]. All other
modules of this package use one matrix, [O, I] or [E O, I]: see `shapes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from slora.layers.shapes import LayerShape, get_expert_shape


class FusedExperts:
    """One parameter of a mixture-of-experts module that holds the weights of all its experts.

    It stands for the parameter where an ordinary target is a module: it has a `weight`, and no
    bias of its own, because the experts' module adds that.
    """

    bias = None

    def __init__(self, module: nn.Module, parameter: str) -> None:
        self.module, self.parameter = module, parameter
        # As PEFT decides which of the two sides is the input: a mark of the module. The product of
        # two factors is the same matrix either way.
        self.transposed = bool(getattr(module, "is_transposed", False))

    @property
    def weight(self) -> nn.Parameter:
        """Return the parameter, [E, O, I] or [E, I, O]."""
        weight = self.module._parameters[self.parameter]
        assert weight is not None
        return weight

    @property
    def shape(self) -> LayerShape:
        """Return [E O, I]."""
        # A sharded parameter is empty, and has its shape beside it.
        experts, *sides = getattr(self.weight, "ds_shape", self.weight.shape)
        rows, columns = reversed(sides) if self.transposed else sides
        return LayerShape(experts * rows, columns, experts)


def is_conv1d(module: Any) -> bool:
    """Return True for transformers' Conv1D, by name and fields: torch has no such layer."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def is_adaptable(module: Any) -> bool:
    """Return True if one of the method's layers can adapt this one."""
    return isinstance(module, nn.Linear | FusedExperts) or is_conv1d(module)


def is_experts_weight(module: nn.Module, parameter: nn.Parameter) -> bool:
    """Return True for the weights of all experts in one parameter.

    A convolution's kernel, and a head's [width, heads, width], have three dimensions as well: only
    the module's name tells what the first one counts.
    """
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return len(shape) == 3 and min(shape) > 1 and "expert" in type(module).__name__.lower()


def iter_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield every layer that can be adapted by name, in the model's order.

    The name of fused experts is that of their parameter.
    """
    for name, module in model.named_modules():
        if is_adaptable(module):
            yield name, module
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if is_experts_weight(module, parameter):
                yield f"{name}.{parameter_name}", FusedExperts(module, parameter_name)


def get_layer(model: nn.Module, name: str) -> Any:
    """Return the layer of that name. Raise TypeError for any other kind of module."""
    owner_name, _, parameter = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    if (weight := owner._parameters.get(parameter)) is not None:
        if is_experts_weight(owner, weight):
            return FusedExperts(owner, parameter)
        raise TypeError(f"{name} can't be adapted: only linear layers and fused experts can")
    layer = model.get_submodule(name)
    if not is_adaptable(layer):
        raise TypeError(f"{name} is a {type(layer).__name__}: only linear layers can be adapted")
    return layer


def get_features(module: Any) -> LayerShape:
    """Return (O, I), or (E O, I). Raise TypeError for any other kind of module."""
    if isinstance(module, FusedExperts):
        return module.shape
    if isinstance(module, nn.Linear):
        return LayerShape(module.out_features, module.in_features)
    if is_conv1d(module):
        return LayerShape(int(module.nf), int(module.nx))
    raise TypeError(
        f"a {type(module).__name__} can't be adapted: only linear layers and Conv1D can"
    )


def is_transposed(module: Any) -> bool:
    """Return True if the weight is stored as [I, O]."""
    return module.transposed if isinstance(module, FusedExperts) else is_conv1d(module)


def get_weight_blocks(module: Any) -> Tensor:
    """Return the weight as [E, O, I], a view: E is 1 for a single matrix."""
    weight: Tensor = module.weight
    blocks = weight if weight.ndim == 3 else weight[None]
    return blocks.transpose(1, 2) if is_transposed(module) else blocks


def get_weight_matrix(module: Any) -> Tensor:
    """Return the weight as [O, I] or [E O, I], to read: a view where the layout allows one."""
    return get_weight_blocks(module).flatten(0, 1)


def flatten_blocks(module: Any, tensor: Tensor) -> Tensor:
    """Return a tensor in the layout of the weight (a gradient) as [O, I] or [E O, I]."""
    blocks = tensor if tensor.ndim == 3 else tensor[None]
    return (blocks.transpose(1, 2) if is_transposed(module) else blocks).flatten(0, 1)


def shape_as_blocks(matrix_OI: Tensor, shape: LayerShape) -> Tensor:
    """Return a matrix [E O, I] as [E, O, I]."""
    return matrix_OI.view(shape.experts, *get_expert_shape(shape))


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, *, conv1d: bool) -> Tensor:
    """Return `x W^T + b` in x's dtype, `[..., I]` to `[..., O]`."""
    # `linear` expects [O, I]; the transpose of a Conv1D's weight is a view and costs nothing.
    return nn.functional.linear(x, (weight.t() if conv1d else weight).to(x.dtype), bias)


def multiply_back(grad: Tensor, weight: Tensor, *, conv1d: bool) -> Tensor:
    """Return `g W`, the gradient of x, `[..., O]` to `[..., I]`."""
    return grad @ (weight.t() if conv1d else weight).to(grad.dtype)


def add_product(y: Tensor, x: Tensor, weight: Tensor, *, conv1d: bool) -> None:
    """Add `x W^T` to y in place: `[N, I]` to `[N, O]`, both in one dtype."""
    y.addmm_(x, (weight if conv1d else weight.t()).to(y.dtype))


def add_product_back(grad_x: Tensor, grad: Tensor, weight: Tensor, *, conv1d: bool) -> None:
    """Add `g W` to the gradient of x in place: `[N, O]` to `[N, I]`, both in one dtype."""
    grad_x.addmm_(grad, (weight.t() if conv1d else weight).to(grad_x.dtype))
