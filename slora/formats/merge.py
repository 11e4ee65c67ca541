"""Put an adapter into a model: as layers beside its weights, or merged into them permanently.

O, I: rows and columns of a weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slora.errors import BadAdapter
from slora.formats.peft import LoraAdapter, SparseAdapter
from slora.handoff.low_rank_init import LowRankInit
from slora.layers.base_layers import get_features, get_weight_matrix, is_adaptable
from slora.layers.install import install_low_rank, install_sparse
from slora.layers.sparse import make_dense_delta

Adapter = LoraAdapter | SparseAdapter


def attach_adapter(model: nn.Module, adapter: Adapter) -> None:
    """Install the adapter's layers and head.

    The base weights stay unchanged, except in a layer with values and factors: there the values
    are added to the weight for as long as the layer is installed. Raise BadAdapter if a layer is
    missing from the model or has another shape.
    """
    _check_layers(model, adapter)
    sparse = adapter if isinstance(adapter, SparseAdapter) else None
    sparse_masks = {
        name: mask for name, mask in (sparse.masks if sparse else {}).items()
        if name not in adapter.factors
    }  # fmt: skip
    for name, layer in install_sparse(model, sparse_masks).items():
        assert sparse is not None
        layer.values.data.copy_(sparse.values[name])
    starts = {
        name: LowRankInit(a_RI, b_OR, residual=sparse.values.get(name) if sparse else None)
        for name, (a_RI, b_OR) in adapter.factors.items()
    }
    masks = sparse.masks if sparse else None
    install_low_rank(model, starts, scale=adapter.scale, masks=masks)
    load_head(model, adapter.head, adapter.base)


def merge_adapter(model: nn.Module, adapter: Adapter) -> None:
    """Add the update to the model's weights, in float32, one matrix at a time."""
    _check_layers(model, adapter)
    for name in get_layer_shapes(adapter):
        weight = get_weight_matrix(model.get_submodule(name)).data
        weight.copy_(weight.float() + compute_update(adapter, name).to(weight.device))
    load_head(model, adapter.head, adapter.base)


def compute_update(adapter: Adapter, name: str) -> Tensor:
    """Return the adapter's update of one layer's weight, float32 `[O, I]`, on the CPU."""
    delta_OI = None
    if isinstance(adapter, SparseAdapter) and name in adapter.values:
        delta_OI = make_dense_delta(adapter.values[name], adapter.masks[name])
    if name in adapter.factors:
        a_RI, b_OR = adapter.factors[name]
        low_rank = adapter.scale * (b_OR.float() @ a_RI.float())
        delta_OI = low_rank if delta_OI is None else delta_OI.add_(low_rank)
    if delta_OI is None:
        raise KeyError(name)
    return delta_OI


def get_layer_shapes(adapter: Adapter) -> dict[str, tuple[int, int]]:
    """Return [O, I] of every layer that the adapter changes."""
    if isinstance(adapter, SparseAdapter):
        return adapter.shapes
    return {name: (b_OR.shape[0], a_RI.shape[1]) for name, (a_RI, b_OR) in adapter.factors.items()}


def _check_layers(model: nn.Module, adapter: Adapter) -> None:
    model_shapes = {
        layer_name: get_features(module)
        for layer_name, module in model.named_modules()
        if is_adaptable(module)
    }
    for name, shape in get_layer_shapes(adapter).items():
        if name not in model_shapes:
            raise BadAdapter(adapter.base, f"the model has no linear layer {name}")
        if shape != model_shapes[name]:
            model_shape = model_shapes[name]
            raise BadAdapter(
                adapter.base, f"{name} is {model_shape} in the model, {shape} in the adapter"
            )


def load_head(model: nn.Module, head: Mapping[str, Tensor], base: str) -> None:
    """Copy a head's tensors into the model. Raise BadAdapter, naming `base`, on a mismatch."""
    parameters = dict(model.named_parameters())
    for name, tensor in head.items():
        target = parameters.get(name)
        if target is None or target.shape != tensor.shape:
            actual = "no such tensor" if target is None else f"a shape of {tuple(target.shape)}"
            expected = f"the head's {name} has the shape {tuple(tensor.shape)}"
            raise BadAdapter(base, f"{expected}, but the base has {actual}")
        with torch.no_grad():
            target.copy_(tensor)
