"""Any adapter in another form: a LoRA at a rank, or a sparse file; and what that keeps of it.

O, I: rows and columns of a weight. R: the rank of the LoRA that is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slora.compact import SparseAdapter
from slora.errors import BadRank
from slora.factor_mask import kept_energy
from slora.folder import LoraAdapter
from slora.handoff import divided
from slora.mask import Entries
from slora.masks.choose import top
from slora.merge import Adapter, layer_shapes, update
from slora.names import entries
from slora.svd import svd_of_dense, svd_of_sparse

Seen = Callable[[str], None]


@dataclass(frozen=True)
class LayerExport:
    """What the new form holds of one layer's update."""

    name: str
    norm: float
    """Of the whole update, Frobenius."""
    kept: float
    """Share of its squared norm that the new form holds; 1.0 for an update of zero."""


@dataclass(frozen=True)
class Export:
    """An adapter in another form."""

    adapter: Adapter
    layers: tuple[LayerExport, ...]

    @property
    def kept(self) -> float:
        """Share of the energy of all layers together."""
        whole = sum(layer.norm**2 for layer in self.layers)
        held = sum(layer.kept * layer.norm**2 for layer in self.layers)
        return held / whole if whole else 1.0


def to_lora(
    adapter: Adapter,
    *,
    rank: int | None = None,
    energy: float | None = None,
    targets: tuple[str, ...] = (),
    head_modules: tuple[str, ...] = (),
    conv1d: bool = False,
    seen: Seen = lambda _: None,
) -> Export:
    """A LoRA whose update is the nearest of its rank in every layer, at alpha = rank.

    `rank`, or the smallest single rank that holds at least the share `energy` of all layers'
    squared norms together. A rank above a layer's smaller side is cut to it there and filled with
    zeros: the adapter has one rank. Raises BadRank for a rank below 1.
    """
    if rank is None:
        rank = _smallest_rank(adapter, energy or 1.0, seen)
    if rank < 1:
        raise BadRank(rank, min(layer_shapes(adapter).values()))
    factors, layers = {}, []
    for name, shape in layer_shapes(adapter).items():
        u, s, vh = _triplets(adapter, name, rank=min(rank, *shape))
        factors[name] = _filled(*divided((u, s, vh), scale=1.0, split="balanced"), rank)
        norm = _norm(adapter, name)
        layers.append(LayerExport(name, norm, _share(s, norm)))
        seen(name)
    made = LoraAdapter(
        factors=factors, alpha=float(rank), rank=rank, base=adapter.base, task=adapter.task,
        conv1d=conv1d, target_modules=targets, head_modules=head_modules, head=adapter.head,
        labels=adapter.labels,
    )  # fmt: skip
    return Export(made, tuple(layers))


def to_sparse(
    adapter: Adapter, *, density: float | None = None, seen: Seen = lambda _: None
) -> Export:
    """A sparse file: the adapter itself where it is one, else its largest entries, by position.

    `density`: the share of each layer's entries that are stored; needed for what has factors.
    """
    if density is None:
        if not isinstance(adapter, SparseAdapter):
            raise ValueError("a low-rank update has no mask of its own: give a density")
        layers = [LayerExport(name, _norm(adapter, name), 1.0) for name in layer_shapes(adapter)]
        return Export(adapter, tuple(layers))
    values: dict[str, Tensor] = {}
    masks, layers = {}, []
    for name, shape in layer_shapes(adapter).items():
        whole = update(adapter, name)
        positions = top(whole.abs().flatten(), entries(shape, density))
        values[name], masks[name] = whole.flatten()[positions], Entries(shape, positions)
        layers.append(LayerExport(name, float(whole.norm()), kept_energy(whole, positions)))
        seen(name)
    made = SparseAdapter(
        values=values, masks=masks, base=adapter.base, task=adapter.task, head=adapter.head,
        labels=adapter.labels,
    )  # fmt: skip
    return Export(made, tuple(layers))


def _triplets(adapter: Adapter, name: str, *, rank: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The update's leading singular triplets; all of them where the rank is still to be found."""
    if isinstance(adapter, SparseAdapter) and name not in adapter.factors and rank:
        return svd_of_sparse(adapter.values[name], adapter.masks[name], rank)
    alone = not isinstance(adapter, SparseAdapter) or name not in adapter.values
    if alone and name in adapter.factors:
        u, s, vh = _of_factors(*adapter.factors[name], adapter.scale)
        return u[:, :rank], s[:rank], vh[:rank]
    whole = update(adapter, name)
    return svd_of_dense(whole, rank or min(whole.shape))


def _of_factors(a_RI: Tensor, b_OR: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of `scale B A`, from the factors alone: no dense product."""
    q_b, r_b = torch.linalg.qr(b_OR.double())
    q_a, r_a = torch.linalg.qr(a_RI.double().t())
    u, s, vh = torch.linalg.svd(scale * r_b @ r_a.t(), full_matrices=False)
    return (q_b @ u).float(), s.float(), (vh @ q_a.t()).float()


def _norm(adapter: Adapter, name: str) -> float:
    """The exact Frobenius norm of one layer's update."""
    if name not in adapter.factors and isinstance(adapter, SparseAdapter):
        return float(adapter.values[name].double().norm())
    return float(update(adapter, name).double().norm())


def _smallest_rank(adapter: Adapter, energy: float, seen: Seen) -> int:
    """That holds this share of all layers together. Of a layer, only its spectrum is kept."""
    shapes = layer_shapes(adapter)
    most = max(min(shape) for shape in shapes.values())
    held = torch.zeros(most, dtype=torch.float64)
    whole, longest = 0.0, 0
    for name in shapes:
        _, s, _ = _triplets(adapter, name, rank=None)
        held[: s.numel()] += s.double().square()
        longest = max(longest, s.numel())
        whole += _norm(adapter, name) ** 2
        seen(name)
    # What is asked is met to rounding: the exact rank of an update holds all of it but that.
    enough = (held.cumsum(0) >= energy * whole * (1 - 1e-6)).nonzero()
    return int(enough[0]) + 1 if enough.numel() else longest


def _filled(a_RI: Tensor, b_OR: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    missing = rank - a_RI.shape[0]
    if missing <= 0:
        return a_RI, b_OR
    return (
        torch.cat((a_RI, a_RI.new_zeros(missing, a_RI.shape[1]))),
        torch.cat((b_OR, b_OR.new_zeros(b_OR.shape[0], missing)), dim=1),
    )


def _share(s: Tensor, norm: float) -> float:
    held = math.fsum(float(value) ** 2 for value in s)
    return min(1.0, held / norm**2) if norm else 1.0
