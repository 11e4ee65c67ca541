"""Compare two adapters: the distance between their updates, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slora.formats.compact import SparseAdapter
from slora.formats.merge import Adapter, compute_update, get_layer_shapes


@dataclass(frozen=True)
class LayerDifference:
    """A layer in two adapters, A and B. A missing update counts as zero."""

    name: str
    norm_a: float
    norm_b: float
    cosine: float | None
    """Cosine of the two updates as vectors; None if one of them is zero."""
    distance: float
    """`||A - B|| / max(||A||, ||B||)`, 0 for two updates of zero."""
    overlap: float | None
    """Entries in both masks over entries in either mask; None unless both adapters have masks."""


def compare_adapters(
    first: Adapter, second: Adapter, *, on_layer: Callable[[str], None] = lambda _: None
) -> list[LayerDifference]:
    """Return every layer that either changes, and every tensor of the heads, most different first.

    `on_layer` is called with each layer's name when it is done. Raise ValueError if a layer has
    two shapes: the adapters belong to different base models.
    """
    shapes, other_shapes = get_layer_shapes(first), get_layer_shapes(second)
    for name in shapes.keys() & other_shapes.keys():
        if shapes[name] != other_shapes[name]:
            raise ValueError(
                f"{name} is {shapes[name]} in one and {other_shapes[name]} in the other adapter: "
                "the adapters belong to different models"
            )
    differences = []
    for name in {**shapes, **other_shapes}:
        differences.append(_compare_layer(first, second, name))
        on_layer(name)
    head_names = dict.fromkeys([*first.head, *second.head])
    differences += [
        _compare_head_tensor(first.head.get(head_name), second.head.get(head_name), head_name)
        for head_name in head_names
    ]
    return sorted(differences, key=lambda layer: (-layer.distance, layer.name))


def _compare_layer(first: Adapter, second: Adapter, name: str) -> LayerDifference:
    owners = [adapter for adapter in (first, second) if name in get_layer_shapes(adapter)]
    zero = torch.zeros(get_layer_shapes(owners[0])[name])
    a, b = (
        compute_update(adapter, name) if name in get_layer_shapes(adapter) else zero
        for adapter in (first, second)
    )
    return _measure_distance(name, a, b, overlap=_measure_overlap(first, second, name))


def _compare_head_tensor(a: Tensor | None, b: Tensor | None, name: str) -> LayerDifference:
    existing = a if a is not None else b
    assert existing is not None
    if a is not None and b is not None and a.shape != b.shape:
        raise ValueError(
            f"{name} is {tuple(a.shape)} in one and {tuple(b.shape)} in the other adapter"
        )
    zero = torch.zeros(existing.shape)
    return _measure_distance(name, zero if a is None else a, zero if b is None else b, overlap=None)


def _measure_distance(name: str, a: Tensor, b: Tensor, *, overlap: float | None) -> LayerDifference:
    a, b = a.double(), b.double()
    norm_a, norm_b = float(a.norm()), float(b.norm())
    largest = max(norm_a, norm_b)
    return LayerDifference(
        name=name,
        norm_a=norm_a,
        norm_b=norm_b,
        cosine=float((a * b).sum()) / (norm_a * norm_b) if norm_a and norm_b else None,
        distance=float((a - b).norm()) / largest if largest else 0.0,
        overlap=overlap,
    )


def _measure_overlap(first: Adapter, second: Adapter, name: str) -> float | None:
    positions = []
    for adapter in (first, second):
        if not isinstance(adapter, SparseAdapter) or name not in adapter.masks:
            return None
        positions.append(adapter.masks[name].positions)
    shared = int(torch.isin(*positions, assume_unique=True).sum())
    return shared / (positions[0].numel() + positions[1].numel() - shared)
