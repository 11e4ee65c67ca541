"""Convert an adapter to a LoRA of a rank or to a sparse file, and report the retained energy.

O, I: rows and columns of a weight. R: the rank of the resulting LoRA.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slora.errors import BadRank
from slora.formats.compact import SparseAdapter
from slora.formats.merge import Adapter, UpdateSource, compute_update, get_layer_shapes
from slora.formats.peft import LoraAdapter
from slora.handoff.handoff import split_triplets
from slora.handoff.linear_update import DenseUpdate, LinearUpdate, SparseUpdate
from slora.handoff.output_norm import measure_output_share, split_by_sketch
from slora.handoff.sketch import LayerSketch
from slora.handoff.svd import Triplets, compute_dense_svd, compute_sparse_svd
from slora.layers.base_layers import shape_as_blocks
from slora.layers.factors import get_rank, split_experts, stack_experts
from slora.layers.patterns import count_entries
from slora.layers.shapes import get_expert_shape
from slora.layers.sparse_factors import measure_energy_share
from slora.masks.mask import EntryMask
from slora.masks.selection import select_top
from slora.masks.stacks import split_values

OnLayer = Callable[[str], None]


@dataclass(frozen=True)
class LayerExport:
    """The part of one layer's update that the new form retains."""

    name: str
    norm: float
    """Frobenius norm of the complete update."""
    energy_share: float
    """Share of its squared norm that the new form retains; 1.0 for an update of zero."""
    output_share: float | None = None
    """Share of its outputs' energy, on the rows of a sketch; None without one."""


@dataclass(frozen=True)
class ExportedAdapter:
    """An adapter in another form."""

    adapter: Adapter
    layers: tuple[LayerExport, ...]
    unheld: tuple[str, ...] = ()
    """Tensors that were trained and are not in it: only of a full fine-tuning."""

    @property
    def energy_share(self) -> float:
        """Return the share of the energy of all layers together."""
        total = sum(layer.norm**2 for layer in self.layers)
        retained = sum(layer.energy_share * layer.norm**2 for layer in self.layers)
        return retained / total if total else 1.0

    @property
    def output_share(self) -> float | None:
        """Return the mean share of the layers' outputs' energy; None if no layer has one."""
        shares = [layer.output_share for layer in self.layers if layer.output_share is not None]
        return statistics.fmean(shares) if shares else None


def make_layer_update(adapter: UpdateSource, name: str) -> LinearUpdate:
    """Return the update of one layer, sparse where it has values alone."""
    if isinstance(adapter, SparseAdapter) and name not in adapter.factors:
        return SparseUpdate(adapter.values[name], adapter.masks[name])
    return DenseUpdate(compute_update(adapter, name))


def hold_factors(adapter: UpdateSource) -> ExportedAdapter | None:
    """Return the adapter as the LoRA that it is, or None if it is more than factors."""
    if isinstance(adapter, LoraAdapter):
        exported = adapter
    elif isinstance(adapter, SparseAdapter) and adapter.factors and not adapter.values:
        rank = max(get_rank(factors) for factors in adapter.factors.values())
        exported = LoraAdapter(
            factors=adapter.factors, alpha=adapter.scale * rank, rank=rank, base=adapter.base,
            task=adapter.task, head=adapter.head, tokens=adapter.tokens, labels=adapter.labels,
            problem_type=adapter.problem_type, revision=adapter.revision,
        )  # fmt: skip
    else:
        return None
    layers = [
        LayerExport(name, _compute_norm(exported, name), 1.0) for name in get_layer_shapes(exported)
    ]
    return ExportedAdapter(exported, tuple(layers))


def convert_to_lora(
    adapter: UpdateSource,
    *,
    rank: int | None = None,
    energy: float | None = None,
    head_modules: tuple[str, ...] = (),
    conv1d: bool = False,
    sketches: Mapping[str, LayerSketch] | None = None,
    on_layer: OnLayer = lambda _: None,
) -> ExportedAdapter:
    """Return a LoRA whose update is the nearest one of its rank in every layer, at alpha = rank:
    for the outputs of layers that have a sketch, else for their weights.

    `rank`, or the smallest single rank that retains at least the share `energy` of all layers'
    squared norms together. A rank above a layer's smaller side is cut to it there and padded with
    zeros: the adapter has one rank. Raise BadRank for a rank below 1.
    """
    if rank is None:
        rank = _find_smallest_rank(adapter, energy or 1.0, on_layer)
    if rank < 1:
        raise BadRank(rank, get_expert_shape(min(get_layer_shapes(adapter).values())))
    factors, layers = {}, []
    for name, shape in get_layer_shapes(adapter).items():
        layer_rank = min(rank, *get_expert_shape(shape))
        sketch, output_share = (sketches or {}).get(name), None
        if sketch is None or sketch.norm == "weights":
            triplets = _compute_triplets(adapter, name, rank=layer_rank)
        else:
            triplets, output_share = _split_by_outputs(adapter, name, sketch, layer_rank)
        factors[name] = stack_experts(
            _pad_factors(*split_triplets(triplet, scale=1.0, split="balanced"), rank)
            for triplet in triplets
        )
        norm = _compute_norm(adapter, name)
        layers.append(LayerExport(name, norm, _compute_share(triplets, norm), output_share))
        on_layer(name)
    exported = LoraAdapter(
        factors=factors, alpha=float(rank), rank=rank, base=adapter.base, task=adapter.task,
        conv1d=conv1d, head_modules=head_modules, head=adapter.head, tokens=adapter.tokens,
        labels=adapter.labels, problem_type=adapter.problem_type,
        revision=adapter.revision,
    )  # fmt: skip
    return ExportedAdapter(exported, tuple(layers), getattr(adapter, "unheld", ()))


def convert_to_sparse(
    adapter: UpdateSource, *, density: float | None = None, on_layer: OnLayer = lambda _: None
) -> ExportedAdapter:
    """Return a sparse file: a sparse adapter unchanged, otherwise the largest entries, by position.

    `density`: the share of each layer's entries to store; required for adapters with factors.
    """
    if density is None:
        if not isinstance(adapter, SparseAdapter):
            raise ValueError("a low-rank update has no mask of its own: set a density")
        layers = [
            LayerExport(name, _compute_norm(adapter, name), 1.0)
            for name in get_layer_shapes(adapter)
        ]
        return ExportedAdapter(adapter, tuple(layers))
    values: dict[str, Tensor] = {}
    masks, layers = {}, []
    for name, shape in get_layer_shapes(adapter).items():
        update_OI = compute_update(adapter, name)
        positions = select_top(update_OI.abs().flatten(), count_entries(shape, density))
        values[name], masks[name] = update_OI.flatten()[positions], EntryMask(shape, positions)
        layers.append(
            LayerExport(name, float(update_OI.norm()), measure_energy_share(update_OI, positions))
        )
        on_layer(name)
    exported = SparseAdapter(
        values=values, masks=masks, base=adapter.base, task=adapter.task, head=adapter.head,
        tokens=adapter.tokens, labels=adapter.labels, problem_type=adapter.problem_type,
        revision=adapter.revision,
    )  # fmt: skip
    return ExportedAdapter(exported, tuple(layers), getattr(adapter, "unheld", ()))


def _split_by_outputs(
    adapter: UpdateSource, name: str, sketch: LayerSketch, rank: int
) -> tuple[list[Triplets], float]:
    """Return the triplets that are best for the outputs, and the share that they retain."""
    update = make_layer_update(adapter, name)
    split = split_by_sketch(update, sketch, rank)
    factors = split_triplets(split.triplets, scale=1.0, split="balanced")
    return [split.triplets], measure_output_share(split, *factors, scale=1.0)


def _compute_triplets(adapter: UpdateSource, name: str, *, rank: int | None) -> list[Triplets]:
    """Return each expert's leading singular triplets, or all of them if `rank` is None."""
    if isinstance(adapter, SparseAdapter) and name not in adapter.factors and rank:
        parts = split_values(adapter.values[name], adapter.masks[name])
        return [compute_sparse_svd(values, mask, rank) for values, mask in parts]
    factors_only = not isinstance(adapter, SparseAdapter) or name not in adapter.values
    if factors_only and name in adapter.factors:
        return [
            _cut_triplets(_compute_factor_triplets(*factors, adapter.scale), rank)
            for factors in split_experts(adapter.factors[name])
        ]
    update_EOI = shape_as_blocks(compute_update(adapter, name), get_layer_shapes(adapter)[name])
    return [compute_dense_svd(update, rank or min(update.shape)) for update in update_EOI]


def _cut_triplets(triplets: Triplets, rank: int | None) -> Triplets:
    u, s, vh = triplets
    return u[:, :rank], s[:rank], vh[:rank]


def _compute_factor_triplets(
    a_RI: Tensor, b_OR: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the triplets of `scale B A` from the factors alone, without the dense product."""
    q_b, r_b = torch.linalg.qr(b_OR.double())
    q_a, r_a = torch.linalg.qr(a_RI.double().t())
    u, s, vh = torch.linalg.svd(scale * r_b @ r_a.t(), full_matrices=False)
    return (q_b @ u).float(), s.float(), (vh @ q_a.t()).float()


def _compute_norm(adapter: UpdateSource, name: str) -> float:
    """Return the exact Frobenius norm of one layer's update."""
    if name not in adapter.factors and isinstance(adapter, SparseAdapter):
        return float(adapter.values[name].double().norm())
    return float(compute_update(adapter, name).double().norm())


def _find_smallest_rank(adapter: UpdateSource, energy: float, on_layer: OnLayer) -> int:
    """Return the smallest rank that retains this share of all layers. Only the spectra are held."""
    shapes = get_layer_shapes(adapter)
    max_rank = max(min(get_expert_shape(shape)) for shape in shapes.values())
    energy_by_rank = torch.zeros(max_rank, dtype=torch.float64)
    total_energy, longest_spectrum = 0.0, 0
    for name in shapes:
        for _, s, _ in _compute_triplets(adapter, name, rank=None):
            energy_by_rank[: s.numel()] += s.double().square()
            longest_spectrum = max(longest_spectrum, s.numel())
        total_energy += _compute_norm(adapter, name) ** 2
        on_layer(name)
    # The share is met up to rounding: the exact rank of an update retains all of it except that.
    sufficient = (energy_by_rank.cumsum(0) >= energy * total_energy * (1 - 1e-6)).nonzero()
    return int(sufficient[0]) + 1 if sufficient.numel() else longest_spectrum


def _pad_factors(a_RI: Tensor, b_OR: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    padding = rank - a_RI.shape[0]
    if padding <= 0:
        return a_RI, b_OR
    return (
        torch.cat((a_RI, a_RI.new_zeros(padding, a_RI.shape[1]))),
        torch.cat((b_OR, b_OR.new_zeros(b_OR.shape[0], padding)), dim=1),
    )


def _compute_share(triplets: list[Triplets], norm: float) -> float:
    retained = math.fsum(float(value) ** 2 for _, s, _ in triplets for value in s)
    return min(1.0, retained / norm**2) if norm else 1.0
