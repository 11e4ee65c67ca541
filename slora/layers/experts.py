"""Adapted weights inside the forward of an experts' module, which reads its parameters by itself.

E: experts. O, I: rows and columns of one expert's matrix. R: the rank. Z: entries of the mask.

The module keeps its parameter under its name. The method's layer is a child of the module under the
same name, and for the duration of a forward an attribute of that name holds the adapted weight. No
copy of the weights lives from the forward to the backward: what autograd saves of the adapted
weight is computed again when the backward needs it, one module at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from slora.layers.base_layers import FusedExperts


class WeightAdapter(Protocol):
    """A layer of the method on fused experts."""

    def compute_weight(self) -> Tensor:
        """Return the adapted weight in the parameter's own layout, a new tensor."""
        ...


class AdaptedExperts(nn.Module):
    """The class that an experts' module takes on, before its own, while it is adapted."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _substitute_weights(self):
            return super().forward(*args, **kwargs)


def install_adapter(base: FusedExperts, layer: nn.Module) -> None:
    """Let the experts compute with the weight of this layer."""
    module = base.module
    if not isinstance(module, AdaptedExperts):
        cls = type(module)
        module.__class__ = type(cls.__name__, (AdaptedExperts, cls), {"__module__": cls.__module__})
    # `add_module` refuses the name of a parameter; here both belong together.
    module._modules[base.parameter] = layer


def remove_adapter(base: FusedExperts) -> None:
    """Let the experts compute with their own weight again."""
    module = base.module
    del module._modules[base.parameter]
    if not any(name in module._parameters for name in module._modules):
        module.__class__ = type(module).__mro__[2]


@contextmanager
def _substitute_weights(module: nn.Module) -> Iterator[None]:
    layers = {name: layer for name, layer in module._modules.items() if name in module._parameters}
    recipe = _WeightRecipe()
    for name, layer in layers.items():
        module.__dict__[name] = recipe.compute(layer)  # type: ignore[arg-type]
    try:
        with torch.autograd.graph.saved_tensors_hooks(recipe.pack, recipe.unpack):
            yield
    finally:
        for name in layers:
            del module.__dict__[name]


@dataclass(frozen=True)
class _View:
    """A view of an adapted weight, to be taken again."""

    layer: WeightAdapter
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


_RECOMPUTED: dict[int, Tensor] = {}
"""Adapted weights that the running backward computed again, by the layer's id: a loop over experts
asks for each of them once an expert, and their own gradient removes them."""


class _WeightRecipe:
    """Replaces what autograd saves of adapted weights by the recipe to compute them again."""

    def __init__(self) -> None:
        self._layers: dict[int, WeightAdapter] = {}

    def compute(self, layer: WeightAdapter) -> Tensor:
        """Return the layer's adapted weight for the forward."""
        weight = layer.compute_weight()
        if weight.requires_grad:
            self._layers[weight.untyped_storage().data_ptr()] = layer
            # All that asks for the weight has run when its gradient is complete.
            weight.register_hook(lambda _: self._forget(layer))  # type: ignore[no-untyped-call]
        return weight

    @staticmethod
    def _forget(layer: WeightAdapter) -> None:
        _RECOMPUTED.pop(id(layer), None)

    def pack(self, saved: Tensor) -> Tensor | _View:
        """Return the recipe for a view of an adapted weight, any other tensor as it is."""
        layer = self._layers.get(saved.untyped_storage().data_ptr())
        if layer is None:
            return saved
        return _View(layer, saved.shape, saved.stride(), int(saved.storage_offset()))

    def unpack(self, saved: Tensor | _View) -> Tensor:
        """Return what was saved, an adapted weight computed again."""
        if isinstance(saved, Tensor):
            return saved
        key = id(saved.layer)
        if key not in _RECOMPUTED:
            with torch.no_grad():
                _RECOMPUTED[key] = saved.layer.compute_weight()
        return _RECOMPUTED[key].as_strided(saved.size, saved.stride, saved.offset)


class AddedEntries(torch.autograd.Function):
    """`W + D` for values at positions of W's storage, with the gradient of the values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.dtype = values.dtype
        adapted = weight.detach().clone()
        flat = adapted.view(-1)
        # Add in the wider of the two dtypes, as the sparse linear layer does.
        sum_dtype = torch.promote_types(flat.dtype, values.dtype)
        original = flat.index_select(0, positions).to(sum_dtype)
        flat.index_copy_(0, positions, (original + values.to(sum_dtype)).to(flat.dtype))
        return adapted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (positions,) = ctx.saved_tensors
        return grad.reshape(-1).index_select(0, positions).to(ctx.dtype), None, None


class AddedProduct(torch.autograd.Function):
    """`W + scale B A` in each expert, with the gradients of both factors."""

    @staticmethod
    def forward(
        ctx: Any, a_RI: Tensor, b_OR: Tensor, weight: Tensor, scale: float, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(a_RI, b_OR)
        ctx.scale, ctx.transposed = scale, transposed
        a, b = _split_stacks(a_RI, b_OR, weight.shape[0])
        left, right = (a.transpose(1, 2), b.transpose(1, 2)) if transposed else (b, a)
        dtype = weight.dtype
        return torch.baddbmm(weight.detach(), left.to(dtype), right.to(dtype), alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a_RI, b_OR = ctx.saved_tensors
        a, b = _split_stacks(a_RI, b_OR, grad.shape[0])
        grad_EOI = grad.transpose(1, 2) if ctx.transposed else grad
        grad_a = torch.bmm(b.to(grad.dtype).transpose(1, 2), grad_EOI).flatten(0, 1)
        grad_b = torch.bmm(grad_EOI, a.to(grad.dtype).transpose(1, 2)).flatten(0, 1)
        scaled_a, scaled_b = grad_a.to(a.dtype) * ctx.scale, grad_b.to(b.dtype) * ctx.scale
        return scaled_a, scaled_b, None, None, None


def _split_stacks(a_RI: Tensor, b_OR: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Return [E, R, I] and [E, O, R]."""
    return a_RI.view(experts, -1, a_RI.shape[1]), b_OR.view(experts, -1, b_OR.shape[1])
