"""Put an adapter into a model: as layers beside its weights, or merged into them permanently.

O, I: rows and columns of a weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slora.errors import BadAdapter
from slora.formats.full_update import FullUpdate
from slora.formats.peft import LoraAdapter, SparseAdapter
from slora.handoff.low_rank_init import LowRankInit
from slora.layers.base_layers import (
    get_features,
    get_layer,
    get_weight_blocks,
    iter_layers,
    shape_as_blocks,
)
from slora.layers.factors import get_factors_shape, multiply_factors
from slora.layers.install import install_low_rank, install_sparse
from slora.layers.shapes import LayerShape
from slora.layers.sparse import make_dense_delta
from slora.layers.token_rows import SUFFIX, TokenIds, resize_for_tokens, write_token_rows

Adapter = LoraAdapter | SparseAdapter
UpdateSource = Adapter | FullUpdate
"""What the updates of layers can be read from."""


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
    load_head(model, adapter.head, adapter.base, tokens=adapter.tokens)


def merge_adapter(model: nn.Module, adapter: Adapter) -> None:
    """Add the update to the model's weights, in float32, one matrix at a time."""
    _check_layers(model, adapter)
    for name, shape in get_layer_shapes(adapter).items():
        weight_EOI = get_weight_blocks(get_layer(model, name)).data
        update_EOI = shape_as_blocks(compute_update(adapter, name), shape)
        weight_EOI.copy_(weight_EOI.float() + update_EOI.to(weight_EOI.device))
    load_head(model, adapter.head, adapter.base, tokens=adapter.tokens)


def compute_update(adapter: UpdateSource, name: str) -> Tensor:
    """Return the adapter's update of one layer's weight, float32 `[O, I]`, on the CPU."""
    if isinstance(adapter, FullUpdate):
        return adapter.compute_layer(name)
    delta_OI = None
    if isinstance(adapter, SparseAdapter) and name in adapter.values:
        delta_OI = make_dense_delta(adapter.values[name], adapter.masks[name])
    if name in adapter.factors:
        a_RI, b_OR = adapter.factors[name]
        low_rank = adapter.scale * multiply_factors(a_RI.float(), b_OR.float())
        delta_OI = low_rank if delta_OI is None else delta_OI.add_(low_rank)
    if delta_OI is None:
        raise KeyError(name)
    return delta_OI


def get_layer_shapes(adapter: UpdateSource) -> dict[str, LayerShape]:
    """Return [O, I] of every layer that the adapter changes, [E O, I] of fused experts."""
    if isinstance(adapter, FullUpdate):
        return dict(adapter.shapes)
    if isinstance(adapter, SparseAdapter):
        return adapter.shapes
    return {name: get_factors_shape(factors) for name, factors in adapter.factors.items()}


def _check_layers(model: nn.Module, adapter: Adapter) -> None:
    model_shapes = {name: get_features(layer) for name, layer in iter_layers(model)}
    for name, shape in get_layer_shapes(adapter).items():
        if name not in model_shapes:
            raise BadAdapter(adapter.base, f"the model has no linear layer {name}")
        model_shape = model_shapes[name]
        if (shape, shape.experts) != (model_shape, model_shape.experts):
            raise BadAdapter(
                adapter.base, f"{name} is {model_shape} in the model, {shape} in the adapter"
            )


def load_head(
    model: nn.Module, head: Mapping[str, Tensor], base: str, *, tokens: TokenIds | None = None
) -> None:
    """Copy a head's tensors into the model. Raise BadAdapter, naming `base`, on a mismatch.

    Embedding rows (`tokens`) go into a model that trains them, or into its embedding itself.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in head.items():
        module = name.removesuffix(SUFFIX)
        if name not in parameters and module in (tokens or {}):
            assert tokens is not None
            resize_for_tokens(model, max(tokens[module]) + 1)
            write_token_rows(model, module, tokens[module], tensor, base)
            continue
        target = parameters.get(name)
        if target is None or target.shape != tensor.shape:
            actual = "no such tensor" if target is None else f"a shape of {tuple(target.shape)}"
            expected = f"the head's {name} has the shape {tuple(tensor.shape)}"
            raise BadAdapter(base, f"{expected}, but the base has {actual}")
        with torch.no_grad():
            target.copy_(tensor)
