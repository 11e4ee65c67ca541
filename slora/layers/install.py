"""Install the method's layers in a model and remove them; the base weights stay unchanged.

The layers share their weight's storage and its name: `...q_proj.weight` stays, and
`...q_proj.values`, or `...q_proj.a_RI` and `...q_proj.b_OR`, are added. While it is installed, a
sparse layer leaves its sums in the masked entries of the weight. Beyond that, only initial factors
that are subtracted from the weight and residuals that are added to it change it: see
`install_low_rank`.

O, I: rows and columns of a weight. R: the rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from slora.handoff.low_rank_init import LowRankInit
from slora.kernels.choice import KernelChoices
from slora.layers.base_layers import (
    FusedExperts,
    get_features,
    get_layer,
    get_weight_blocks,
    shape_as_blocks,
)
from slora.layers.experts import install_adapter, remove_adapter
from slora.layers.factors import multiply_factors, select_ranks
from slora.layers.gates import GatedLoraLinear
from slora.layers.lora import LoraLinear
from slora.layers.sparse import SparseLinear, find_storage_positions
from slora.layers.sparse_factors import SparseFactorLinear
from slora.masks.factor_mask import FactorMaskRule
from slora.masks.mask import Mask

WriteContext = Callable[[Tensor], AbstractContextManager[None]]
"""Return a context in which a weight is gathered and writable, for bases that are sharded."""
TRAINABLE_SUFFIXES = (".values", ".a_RI", ".b_OR", ".a_values", ".b_values", ".gate_R")
"""Suffixes of the names of the method's trainable tensors."""


def freeze(model: nn.Module, *, trainable: Iterable[nn.Module] = ()) -> None:
    """Freeze all parameters except those inside the modules `trainable` (a classifier's head)."""
    model.requires_grad_(False)
    for module in trainable:
        module.requires_grad_(True)


def install_sparse(model: nn.Module, masks: Mapping[str, Mask]) -> dict[str, SparseLinear]:
    """Install a vector of zero values for each layer's mask. Return the layers by name.

    While they are installed, a forward leaves W + D in the weight; `remove_layers` puts W's own
    entries back. `choose_kernels` makes their gradients faster.
    """
    layers = {}
    holders = Counter(
        id(parameter) for module in model.modules() for parameter in module._parameters.values()
    )
    for name, mask in masks.items():
        base = get_layer(model, name)
        is_shared = holders[id(base.weight)] > 1
        layers[name] = SparseLinear(base, mask, restores_at_once=is_shared)
        _replace_layer(model, name, layers[name])
    return layers


def choose_kernels(
    model: nn.Module, *, tokens: int, known: KernelChoices | None = None
) -> KernelChoices:
    """Return the fastest kernels for the installed sparse layers: `known` ones, or probed.

    `tokens` of a micro-batch. `use_kernels` makes the layers use them.
    """
    choices = KernelChoices() if known is None else known
    layers = list(_iterate_entry_layers(model))
    if not layers:
        return KernelChoices()
    patterns = (layer.get_pattern() for layer in layers)
    return choices.choose(patterns, tokens=tokens, dtype=layers[0].weight.dtype)


def use_kernels(model: nn.Module, choices: KernelChoices) -> None:
    """Make all installed sparse layers compute with these kernels."""
    for layer in _iterate_entry_layers(model):
        layer.choices = choices


def install_lora(
    model: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]], *, scale: float
) -> dict[str, LoraLinear]:
    """Install the factors (a_RI, b_OR) in each named layer. Return the layers by name."""
    starts = {name: LowRankInit(a_RI, b_OR) for name, (a_RI, b_OR) in factors.items()}
    return install_low_rank(model, starts, scale=scale)


def install_low_rank(
    model: nn.Module,
    starts: Mapping[str, LowRankInit],
    *,
    scale: float,
    masks: Mapping[str, Mask] | None = None,
    factor_mask: FactorMaskRule | None = None,
    gates: bool = False,
    writable: WriteContext = lambda _: nullcontext(),
) -> dict[str, LoraLinear]:
    """Install factors that start from each layer's `LowRankInit`. Return the layers by name.

    `factor_mask`: train these entries of the factors only.

    An init with a residual (on `masks`) or with `subtract_from_base` changes the frozen weight in
    place for as long as the layer is installed. `remove_layers` restores the entries of a residual
    bit for bit; `subtract_from_base` changes every entry, and the model in memory is no longer the
    base.
    """
    layers: dict[str, LoraLinear] = {}
    for name, start in starts.items():
        base, factors = get_layer(model, name), {"a_RI": start.a_RI, "b_OR": start.b_OR}
        layer: LoraLinear
        if factor_mask is not None:
            layer = SparseFactorLinear(base, **factors, scale=scale, rule=factor_mask, name=name)
        else:
            layer = (GatedLoraLinear if gates else LoraLinear)(base, **factors, scale=scale)
        mask = masks[name] if masks and start.residual is not None else None
        if mask is not None or start.subtract_from_base:
            with writable(layer.weight):
                _shift_weight(layer, start, mask)
        layers[name] = layer
        _replace_layer(model, name, layer)
    return layers


def remove_layers(model: nn.Module, *, writable: WriteContext = lambda _: nullcontext()) -> None:
    """Put the original linear layers back, with their original weights."""
    for name, layer in list(iter_adapter_layers(model)):
        if isinstance(layer, SparseLinear):
            layer.restore_entries()
        if isinstance(layer, LoraLinear) and layer.saved_entries is not None:
            positions, original = layer.saved_entries
            with writable(layer.weight):
                layer.weight.data.view(-1).index_copy_(0, positions, original)
        base = layer.wrapped[0]
        if isinstance(base, FusedExperts):
            remove_adapter(base)
        else:
            model.set_submodule(name, base)


def _iterate_entry_layers(model: nn.Module) -> Iterator[SparseLinear]:
    """Yield the layers whose gradients are sampled: a block's product is dense, and fused experts
    compute with the adapted weight.
    """
    for _, layer in iter_adapter_layers(model):
        if not isinstance(layer, SparseLinear) or layer.block:
            continue
        if not isinstance(layer.wrapped[0], FusedExperts):
            yield layer


def iter_adapter_layers(model: nn.Module) -> Iterator[tuple[str, SparseLinear | LoraLinear]]:
    """Yield the method's layers of a model with their names."""
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear | LoraLinear):
            yield name, module


def extract_factors(
    weights: Mapping[str, Tensor], model: nn.Module
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the dense factors (a_RI, b_OR) of each low-rank layer of `model`, float32 on the CPU.

    `weights` holds the trained tensors by name. The untrained entries of sparse factors are those
    of the start; a gate is multiplied into its column of B, and the rank of a closed gate is
    dropped.
    """
    factors = {}
    for name, layer in iter_adapter_layers(model):
        if isinstance(layer, SparseFactorLinear):
            values = weights[f"{name}.a_values"], weights[f"{name}.b_values"]
            factors[name] = layer.fill_factors(*values)
        elif isinstance(layer, LoraLinear):
            a, b = weights[f"{name}.a_RI"].cpu().float(), weights[f"{name}.b_OR"].cpu().float()
            if isinstance(layer, GatedLoraLinear):
                gate = weights[f"{name}.gate_R"].cpu().float() * layer.open_R.cpu().float()
                a, b = select_ranks((a, b * gate), gate != 0)
            factors[name] = (a, b)
    return factors


def _shift_weight(layer: LoraLinear, start: LowRankInit, mask: Mask | None) -> None:
    """Add the residual to the weight, and subtract the initial product of the factors from it."""
    weight = layer.weight.data
    if mask is not None and start.residual is not None:
        experts = get_features(layer.wrapped[0]).experts
        positions = find_storage_positions(mask, layer.conv1d, experts=experts).to(weight.device)
        flat = weight.view(-1)
        original = flat.index_select(0, positions)
        shifted = original.float() + start.residual.to(weight.device)
        flat.index_copy_(0, positions, shifted.to(weight.dtype))
        layer.saved_entries = None if start.subtract_from_base else (positions, original)
    if start.subtract_from_base:
        with torch.no_grad():
            a_RI, b_OR = layer.get_factors()
            delta_OI = layer.scale * multiply_factors(a_RI.detach().float(), b_OR.detach().float())
        base = layer.wrapped[0]
        weight_EOI = get_weight_blocks(base).data
        delta_EOI = shape_as_blocks(delta_OI, get_features(base))
        weight_EOI.copy_((weight_EOI.float() - delta_EOI).to(weight_EOI.dtype))


def _replace_layer(model: nn.Module, name: str, layer: SparseLinear | LoraLinear) -> None:
    base = layer.wrapped[0]
    if isinstance(base, FusedExperts):
        install_adapter(base, layer)
    else:
        model.set_submodule(name, layer)
