"""Puts the method's layers into a model and takes them out again; the base's weights never move.

The layers share their weight's storage and its name: `...q_proj.weight` stays what it was, and
beside it stand `...q_proj.values`, or `...q_proj.a_RI` and `...q_proj.b_OR`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from slora.lowrank import LoraLinear
from slora.mask import Mask
from slora.sparse import SparseLinear


def freeze(model: nn.Module, *, trained: Iterable[nn.Module] = ()) -> None:
    """Nothing learns but what is inside the modules `trained` (a classifier's head)."""
    model.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)


def install_sparse(model: nn.Module, masks: Mapping[str, Mask]) -> dict[str, SparseLinear]:
    """Each named layer gets a vector of values for its mask, zero at first. Returns the layers."""
    layers = {}
    for name, mask in masks.items():
        layers[name] = SparseLinear(_plain(model, name), mask)
        model.set_submodule(name, layers[name])
    return layers


def install_lora(
    model: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]], *, scale: float
) -> dict[str, LoraLinear]:
    """Each named layer gets its factors (a_RI, b_OR). Returns the layers by name."""
    layers = {}
    for name, (a_RI, b_OR) in factors.items():
        layers[name] = LoraLinear(_plain(model, name), a_RI=a_RI, b_OR=b_OR, scale=scale)
        model.set_submodule(name, layers[name])
    return layers


def remove(model: nn.Module) -> None:
    """Puts the plain linear layers back, with the weights that they had."""
    for name, layer in list(adapted(model)):
        model.set_submodule(name, layer.replaced[0])


def adapted(model: nn.Module) -> Iterator[tuple[str, SparseLinear | LoraLinear]]:
    """The method's layers in a model, by name."""
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear | LoraLinear):
            yield name, module


def _plain(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"{name} is a {type(layer).__name__}: only linear layers can be adapted")
    return layer
