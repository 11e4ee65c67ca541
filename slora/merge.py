"""An adapter put into a model: as layers beside its weights, or merged into them for good.

O, I: rows and columns of a weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slora.adapt import install_low_rank, install_sparse
from slora.errors import BadAdapter
from slora.folder import LoraAdapter, SparseAdapter
from slora.plain import features, is_plain, matrix
from slora.sparse import dense_delta
from slora.start import Start

Adapter = LoraAdapter | SparseAdapter


def attach(model: nn.Module, adapter: Adapter) -> None:
    """Installs the adapter's layers and head.

    The base's weights stay as they are, but where a layer has values and factors: the values are
    then added to the weight for as long as the layer stands.

    Raises BadAdapter if a layer is missing from the model or has another shape.
    """
    _check_layers(model, adapter)
    sparse = adapter if isinstance(adapter, SparseAdapter) else None
    alone = {
        name: mask for name, mask in (sparse.masks if sparse else {}).items()
        if name not in adapter.factors
    }  # fmt: skip
    for name, layer in install_sparse(model, alone).items():
        assert sparse is not None
        layer.values.data.copy_(sparse.values[name])
    starts = {
        name: Start(a_RI, b_OR, residual=sparse.values.get(name) if sparse else None)
        for name, (a_RI, b_OR) in adapter.factors.items()
    }
    masks = sparse.masks if sparse else None
    install_low_rank(model, starts, scale=adapter.scale, masks=masks)
    load_head(model, adapter.head, adapter.base)


def merge(model: nn.Module, adapter: Adapter) -> None:
    """Adds the update to the model's weights, in float32, one matrix at a time."""
    _check_layers(model, adapter)
    for name in layer_shapes(adapter):
        weight = matrix(model.get_submodule(name)).data
        weight.copy_(weight.float() + update(adapter, name).to(weight.device))
    load_head(model, adapter.head, adapter.base)


def update(adapter: Adapter, name: str) -> Tensor:
    """What the adapter adds to one layer's weight, float32 `[O, I]`, on the CPU."""
    found = None
    if isinstance(adapter, SparseAdapter) and name in adapter.values:
        found = dense_delta(adapter.values[name], adapter.masks[name])
    if name in adapter.factors:
        a_RI, b_OR = adapter.factors[name]
        low_rank = adapter.scale * (b_OR.float() @ a_RI.float())
        found = low_rank if found is None else found.add_(low_rank)
    if found is None:
        raise KeyError(name)
    return found


def layer_shapes(adapter: Adapter) -> dict[str, tuple[int, int]]:
    """[O, I] of every layer that the adapter changes."""
    if isinstance(adapter, SparseAdapter):
        return adapter.shapes
    return {n: (b_OR.shape[0], a_RI.shape[1]) for n, (a_RI, b_OR) in adapter.factors.items()}


def _check_layers(model: nn.Module, adapter: Adapter) -> None:
    there = {n: features(m) for n, m in model.named_modules() if is_plain(m)}
    for name, found in layer_shapes(adapter).items():
        if name not in there:
            raise BadAdapter(adapter.base, f"the model has no linear layer {name}")
        if found != there[name]:
            layer = there[name]
            raise BadAdapter(
                adapter.base, f"{name} is {layer} in the model, {found} in the adapter"
            )


def load_head(model: nn.Module, head: Mapping[str, Tensor], base: str) -> None:
    """Puts a head's tensors into the model. Raises BadAdapter, naming `base`, where it can't."""
    parameters = dict(model.named_parameters())
    for name, tensor in head.items():
        target = parameters.get(name)
        if target is None or target.shape != tensor.shape:
            found = "no such tensor" if target is None else f"one of {tuple(target.shape)}"
            raise BadAdapter(base, f"the head's {name} {tuple(tensor.shape)}: {found}")
        with torch.no_grad():
            target.copy_(tensor)
