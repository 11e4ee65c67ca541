"""Two adapters side by side: how far apart their updates are, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slora.compact import SparseAdapter
from slora.merge import Adapter, layer_shapes, update


@dataclass(frozen=True)
class LayerDifference:
    """One layer of two adapters, A and B. An update that is missing is zero."""

    name: str
    norm_a: float
    norm_b: float
    cosine: float | None
    """Of the two updates as vectors; None where one of them is zero."""
    distance: float
    """`||A - B|| / max(||A||, ||B||)`, 0 for two updates of zero."""
    overlap: float | None
    """Entries that both masks hold, over those that either holds; None without two masks."""


def compare(
    first: Adapter, second: Adapter, *, seen: Callable[[str], None] = lambda _: None
) -> list[LayerDifference]:
    """Every layer that either changes, and every tensor of the heads, the most different first.

    `seen` is told each layer's name when it is done.

    Raises ValueError where a layer has two shapes: the adapters are of different bases.
    """
    shapes, others = layer_shapes(first), layer_shapes(second)
    for name in shapes.keys() & others.keys():
        if shapes[name] != others[name]:
            raise ValueError(
                f"{name} is {shapes[name]} in one and {others[name]} in the other: "
                "they are adapters of different models"
            )
    found = []
    for name in {**shapes, **others}:
        found.append(_difference(first, second, name))
        seen(name)
    heads = dict.fromkeys([*first.head, *second.head])
    found += [_head_difference(first.head.get(n), second.head.get(n), n) for n in heads]
    return sorted(found, key=lambda layer: (-layer.distance, layer.name))


def _difference(first: Adapter, second: Adapter, name: str) -> LayerDifference:
    there = [one for one in (first, second) if name in layer_shapes(one)]
    zero = torch.zeros(layer_shapes(there[0])[name])
    a, b = (update(one, name) if name in layer_shapes(one) else zero for one in (first, second))
    return _distance(name, a, b, overlap=_overlap(first, second, name))


def _head_difference(a: Tensor | None, b: Tensor | None, name: str) -> LayerDifference:
    there = a if a is not None else b
    assert there is not None
    if a is not None and b is not None and a.shape != b.shape:
        raise ValueError(f"{name} is {tuple(a.shape)} in one and {tuple(b.shape)} in the other")
    zero = torch.zeros(there.shape)
    return _distance(name, zero if a is None else a, zero if b is None else b, overlap=None)


def _distance(name: str, a: Tensor, b: Tensor, *, overlap: float | None) -> LayerDifference:
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


def _overlap(first: Adapter, second: Adapter, name: str) -> float | None:
    sets = []
    for one in (first, second):
        if not isinstance(one, SparseAdapter) or name not in one.masks:
            return None
        sets.append(one.masks[name].positions)
    both = int(torch.isin(*sets, assume_unique=True).sum())
    return both / (sets[0].numel() + sets[1].numel() - both)
