"""Puts the method's layers into a model and takes them out again; the base's weights never move.

The layers share their weight's storage and its name: `...q_proj.weight` stays what it was, and
beside it stand `...q_proj.values`, or `...q_proj.a_RI` and `...q_proj.b_OR`. The one exception are
starts that are taken out of the weight, or put part of an update into it: see `install_low_rank`.

O, I: rows and columns of a weight. R: the rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from slora.handoff.low_rank_init import LowRankInit
from slora.layers.base_layers import get_weight_matrix, is_adaptable
from slora.layers.gates import GatedLoraLinear
from slora.layers.lora import LoraLinear
from slora.layers.sparse import SparseLinear, find_storage_positions
from slora.layers.sparse_factors import SparseFactorLinear, expand_to_dense
from slora.masks.mask import Mask

WriteContext = Callable[[Tensor], AbstractContextManager[None]]
"""Inside what it gives, a weight is whole and may be written to: for bases that are sharded."""
TRAINABLE_SUFFIXES = (".values", ".a_RI", ".b_OR", ".a_values", ".b_values", ".gate_R")
"""How the names of the method's trainable tensors end."""


def freeze(model: nn.Module, *, trainable: Iterable[nn.Module] = ()) -> None:
    """Nothing learns but what is inside the modules `trained` (a classifier's head)."""
    model.requires_grad_(False)
    for module in trainable:
        module.requires_grad_(True)


def install_sparse(model: nn.Module, masks: Mapping[str, Mask]) -> dict[str, SparseLinear]:
    """Each named layer gets a vector of values for its mask, zero at first. Returns the layers."""
    layers = {}
    for name, mask in masks.items():
        layers[name] = SparseLinear(_get_adaptable(model, name), mask)
        model.set_submodule(name, layers[name])
    return layers


def install_lora(
    model: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]], *, scale: float
) -> dict[str, LoraLinear]:
    """Each named layer gets its factors (a_RI, b_OR). Returns the layers by name."""
    starts = {name: LowRankInit(a_RI, b_OR) for name, (a_RI, b_OR) in factors.items()}
    return install_low_rank(model, starts, scale=scale)


def install_low_rank(
    model: nn.Module,
    starts: Mapping[str, LowRankInit],
    *,
    scale: float,
    masks: Mapping[str, Mask] | None = None,
    factor_density: float = 1.0,
    gates: bool = False,
    seed: int = 0,
    writable: WriteContext = lambda _: nullcontext(),
) -> dict[str, LoraLinear]:
    """Each named layer gets factors that start where its `Start` says. Returns the layers.

    A start with a residual (on `masks`) or with `minus` moves the frozen weight in place, for as
    long as the layer stands. `remove` puts the entries of a residual alone back, bit for bit; what
    `minus` has moved, it has moved all over, and the model in memory is no longer the base.
    """
    layers: dict[str, LoraLinear] = {}
    for name, start in starts.items():
        base, factors = _get_adaptable(model, name), {"a_RI": start.a_RI, "b_OR": start.b_OR}
        layer: LoraLinear
        if factor_density < 1:
            layer = SparseFactorLinear(
                base, **factors, scale=scale, density=factor_density, seed=seed, name=name
            )
        else:
            layer = (GatedLoraLinear if gates else LoraLinear)(base, **factors, scale=scale)
        mask = masks[name] if masks and start.residual is not None else None
        if mask is not None or start.subtract_from_base:
            with writable(layer.weight):
                _shift_weight(layer, start, mask)
        layers[name] = layer
        model.set_submodule(name, layer)
    return layers


def remove_layers(model: nn.Module, *, writable: WriteContext = lambda _: nullcontext()) -> None:
    """Puts the plain linear layers back, with the weights that they had."""
    for name, layer in list(iter_adapter_layers(model)):
        if isinstance(layer, LoraLinear) and layer.saved_entries is not None:
            positions, original = layer.saved_entries
            with writable(layer.weight):
                layer.weight.data.view(-1).index_copy_(0, positions, original)
        model.set_submodule(name, layer.wrapped[0])


def iter_adapter_layers(model: nn.Module) -> Iterator[tuple[str, SparseLinear | LoraLinear]]:
    """The method's layers in a model, by name."""
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear | LoraLinear):
            yield name, module


def extract_factors(
    weights: Mapping[str, Tensor], model: nn.Module
) -> dict[str, tuple[Tensor, Tensor]]:
    """The plain factors (a_RI, b_OR) of each low-rank layer of `model`, float32 on the CPU.

    `weights` holds the trained tensors by name: of sparse factors the rest is zero; a gate is
    multiplied into its column of B, and a closed one's rank is left out.
    """
    factors = {}
    for name, layer in iter_adapter_layers(model):
        if isinstance(layer, SparseFactorLinear):
            sides = (
                ("a", (layer.rank, layer.in_features)),
                ("b", (layer.out_features, layer.rank)),
            )
            a, b = (
                expand_to_dense(
                    weights[f"{name}.{side}_values"].cpu().float(),
                    getattr(layer, f"{side}_positions").cpu(),
                    shape,
                )
                for side, shape in sides
            )
            factors[name] = (a, b)
        elif isinstance(layer, LoraLinear):
            a, b = weights[f"{name}.a_RI"].cpu().float(), weights[f"{name}.b_OR"].cpu().float()
            if isinstance(layer, GatedLoraLinear):
                gate = weights[f"{name}.gate_R"].cpu().float() * layer.open_R.cpu().float()
                a, b = a[gate != 0], (b * gate)[:, gate != 0]
            factors[name] = (a, b)
    return factors


def _shift_weight(layer: LoraLinear, start: LowRankInit, mask: Mask | None) -> None:
    """Adds the residual to the weight, and takes the factors' start out of it."""
    weight = layer.weight.data
    if mask is not None and start.residual is not None:
        positions = find_storage_positions(mask, layer.conv1d).to(weight.device)
        flat = weight.view(-1)
        original = flat.index_select(0, positions)
        shifted = original.float() + start.residual.to(weight.device)
        flat.index_copy_(0, positions, shifted.to(weight.dtype))
        layer.saved_entries = None if start.subtract_from_base else (positions, original)
    if start.subtract_from_base:
        with torch.no_grad():
            a_RI, b_OR = layer.get_factors()
            delta_OI = layer.scale * (b_OR.detach().float() @ a_RI.detach().float())
        weight_OI = get_weight_matrix(layer.wrapped[0]).data
        weight_OI.copy_((weight_OI.float() - delta_OI).to(weight_OI.dtype))


def _get_adaptable(model: nn.Module, name: str) -> Any:
    layer = model.get_submodule(name)
    if not is_adaptable(layer):
        raise TypeError(f"{name} is a {type(layer).__name__}: only linear layers can be adapted")
    return layer
