"""An adapter put into a model: as layers beside its weights, or merged into them for good."""

from __future__ import annotations

import torch
from torch import nn

from slora.adapt import install_lora, install_sparse
from slora.errors import BadAdapter
from slora.folder import LoraAdapter, SparseAdapter
from slora.sparse import dense_delta


def attach(model: nn.Module, adapter: LoraAdapter | SparseAdapter) -> None:
    """Installs the adapter's layers and head; the base's weights stay as they are.

    Raises BadAdapter if a layer is missing from the model or has another shape.
    """
    _check_layers(model, adapter)
    if isinstance(adapter, LoraAdapter):
        install_lora(model, adapter.factors, scale=adapter.scale)
    else:
        layers = install_sparse(model, adapter.masks())
        for name, layer in layers.items():
            layer.values.data.copy_(adapter.values[name])
    _load_head(model, adapter)


def merge(model: nn.Module, adapter: LoraAdapter | SparseAdapter) -> None:
    """Adds the update to the model's weights, in float32, one matrix at a time."""
    _check_layers(model, adapter)
    masks = adapter.masks() if isinstance(adapter, SparseAdapter) else {}
    for name in _layers(adapter):
        weight = model.get_parameter(f"{name}.weight")
        if isinstance(adapter, LoraAdapter):
            a_RI, b_OR = adapter.factors[name]
            delta = adapter.scale * (b_OR.float() @ a_RI.float())
        else:
            delta = dense_delta(adapter.values[name], masks[name])
        weight.data.copy_(weight.data.float() + delta.to(weight.device))
    _load_head(model, adapter)


def _layers(adapter: LoraAdapter | SparseAdapter) -> tuple[str, ...]:
    return tuple(adapter.factors if isinstance(adapter, LoraAdapter) else adapter.values)


def _check_layers(model: nn.Module, adapter: LoraAdapter | SparseAdapter) -> None:
    there = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name in _layers(adapter):
        if name not in there:
            raise BadAdapter(adapter.base, f"the model has no linear layer {name}")
        layer = (there[name].out_features, there[name].in_features)
        if isinstance(adapter, LoraAdapter):
            a_RI, b_OR = adapter.factors[name]
            found = (b_OR.shape[0], a_RI.shape[1])
        else:
            found = adapter.shapes[name]
        if found != layer:
            raise BadAdapter(
                adapter.base, f"{name} is {layer} in the model, {found} in the adapter"
            )


def _load_head(model: nn.Module, adapter: LoraAdapter | SparseAdapter) -> None:
    parameters = dict(model.named_parameters())
    for name, tensor in adapter.head.items():
        target = parameters.get(name)
        if target is None or target.shape != tensor.shape:
            found = "no such tensor" if target is None else f"one of {tuple(target.shape)}"
            raise BadAdapter(adapter.base, f"the head's {name} {tuple(tensor.shape)}: {found}")
        with torch.no_grad():
            target.copy_(tensor)
