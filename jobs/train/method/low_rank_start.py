"""The inits of a low-rank stage: from a hand-off, random as in LoRA, from weights or gradients.

The layers are distributed over the ranks, one dense matrix at a time on each, and broadcast. Inits
that can't be made again from the seed alone are saved in the run's folder, to resume from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from jobs.plan.estimate.traffic import FACTOR_FACTS
from jobs.spec.schema import MethodSection
from jobs.store.runs.run_store import LOW_RANK_INIT, RunStore
from jobs.train.comm.collectives import HANDOFF, WorkerContext
from jobs.train.method.masks import make_factor_mask_rule
from jobs.train.method.sparse_updates import SparseUpdates
from jobs.train.model.shard_access import gather_for_reading
from slora.handoff.handoff import Refine, split_sparse_update
from slora.handoff.init import init_lora_ga, init_pissa
from slora.handoff.low_rank_init import LowRankInit
from slora.handoff.sketch import LayerSketch
from slora.layers.base_layers import get_features, get_weight_matrix
from slora.layers.factors import get_factors_shape, stack_experts
from slora.layers.lora import init_factors
from slora.layers.shapes import count_experts, count_factor_entries, get_factor_shapes
from slora.layers.sparse_factors import mask_factor
from slora.masks.mask import Mask

Shapes = Mapping[str, tuple[int, int]]
LayerCallback = Callable[[str], None]
"""Called with each layer's name when its init is ready."""
SUBTRACT_KEY = "minus"
NO_SHARE = -1.0
"""Sent in place of a share that is not known."""


@dataclass(frozen=True)
class LayerHandoff:
    """The result of one layer's hand-off."""

    name: str
    energy_share: float
    """Share of the update's energy that the rank holds."""
    error: float
    """`||dW - scale B A|| / ||dW||`, without the residual beside the factors."""
    norm: float
    """Frobenius norm of the full update."""
    rank: int
    """Effective rank: below the spec's if the update has no more."""
    norm_kind: str = "weights"
    """weights | outputs | loss: the norm in which the factors are nearest to the update."""
    output_share: float | None = None
    """Share of the outputs' energy that the factors retain; None in the weights' norm."""


def compute_handoff(
    updates: SparseUpdates,
    context: WorkerContext,
    *,
    on_layer: LayerCallback,
    sketches: Mapping[str, LayerSketch] | None = None,
) -> tuple[dict[str, LowRankInit], list[LayerHandoff]]:
    """Return each layer's sparse update as an init, and the hand-off's result. A collective.

    A layer without a sketch, or without a token in it, is split in the weights' norm.
    """
    used = {name: sketch for name, sketch in (sketches or {}).items() if sketch.norm != "weights"}
    masks, method = updates.masks, updates.method
    rank, keeps_residual = method.rank, method.handoff.residual != "drop"

    def split_layer(name: str, mask: Mask) -> Tensor:
        result = split_sparse_update(
            updates.get_values(name),
            mask,
            rank=rank,
            scale=method.scale,
            split=method.handoff.split,
            rescale=method.handoff.rescale,
            residual=method.handoff.residual,
            refine=_make_refine(name, mask.shape, method, seed=updates.seed),
            sketch=used.get(name),
        )
        output_share = NO_SHARE if result.output_share is None else result.output_share
        facts = torch.tensor(
            [
                result.energy_share,
                result.error,
                result.norm,
                float(result.effective_rank),
                output_share,
            ]
        )
        parts = [result.a_RI.flatten(), result.b_OR.flatten(), facts]
        return torch.cat([*parts, result.residual] if result.residual is not None else parts)

    def list_work() -> Iterator[tuple[str, int, Callable[[], Tensor]]]:
        for name, mask in masks.items():
            length = count_factor_entries(mask.shape, rank) + FACTOR_FACTS
            length += mask.nnz if keeps_residual else 0
            yield name, length, lambda name=name, mask=mask: split_layer(name, mask)  # type: ignore[misc]

    inits, reports = {}, []
    for name, flat in _share_work(list_work(), context, on_layer):
        a_shape, b_shape = get_factor_shapes(masks[name].shape, rank)
        sizes = [math.prod(a_shape), math.prod(b_shape), FACTOR_FACTS]
        a, b, facts, residual = torch.split(flat, [*sizes, flat.numel() - sum(sizes)])
        subtract = method.handoff.residual == "fold"
        factors = a.view(a_shape), b.view(b_shape)
        inits[name] = LowRankInit(
            *factors, subtract_from_base=subtract, residual=residual if keeps_residual else None
        )
        energy_share, error, norm, effective_rank, output_share = facts.tolist()
        norm_kind = used[name].norm if name in used else "weights"
        share = None if output_share == NO_SHARE else output_share
        reports.append(
            LayerHandoff(name, energy_share, error, norm, int(effective_rank), norm_kind, share)
        )
    return inits, reports


def _make_refine(name: str, shape: tuple[int, int], method: MethodSection, *, seed: int) -> Refine:
    """Return what the low-rank stage will do to a layer's factors, so that they are rated after it.

    Ranks that the update does not fill get LoRA's own A, beside their B of zero: with both factors
    zero such a rank would have no gradient, and never learn.
    """

    def refine(a_RI: Tensor, b_OR: Tensor, effective_ranks: list[int]) -> tuple[Tensor, Tensor]:
        if min(effective_ranks) < method.rank:
            fresh, _ = init_factors(seed=seed, name=name, shape=shape, rank=method.rank)
            rank_of_row = torch.arange(method.rank).repeat(len(effective_ranks))
            limits = torch.tensor(effective_ranks).repeat_interleave(method.rank)
            a_RI = torch.where((rank_of_row < limits)[:, None], a_RI, fresh)
        return a_RI, b_OR

    return refine


def make_lora_inits(shapes: Shapes, method: MethodSection, *, seed: int) -> dict[str, LowRankInit]:
    """Return LoRA's own inits: A random, B zero. Under masks of A, zero outside them too."""
    rule, inits = make_factor_mask_rule(method, seed=seed), {}
    for name, shape in shapes.items():
        a_RI, b_OR = init_factors(seed=seed, name=name, shape=shape, rank=method.rank)
        if rule is not None:
            a_RI = mask_factor(a_RI, rule.draw(name, shape, method.rank)[0])
        inits[name] = LowRankInit(a_RI, b_OR)
    return inits


def make_pissa_inits(
    layers: Mapping[str, Any],
    method: MethodSection,
    context: WorkerContext,
    on_layer: LayerCallback,
) -> dict[str, LowRankInit]:
    """Return PiSSA's inits: each weight's best rank-r part, subtracted from it. A collective."""

    def iterate_weights() -> Iterator[tuple[str, Tensor]]:
        for name, layer in layers.items():
            with gather_for_reading(layer.weight):
                yield name, get_weight_matrix(layer)

    shapes = {name: get_features(layer) for name, layer in layers.items()}
    return _decide_inits(iterate_weights(), shapes, init_pissa, method, context, on_layer)


def make_gradient_inits(
    gradients: Iterable[tuple[str, Tensor]],
    shapes: Shapes,
    method: MethodSection,
    context: WorkerContext,
    *,
    seed: int,
    on_layer: LayerCallback,
) -> dict[str, LowRankInit]:
    """Return LoRA-GA's inits: singular vectors of each weight's first gradient. A collective.

    A layer that no calibration gradient reached starts as in LoRA.
    """
    inits = _decide_inits(gradients, shapes, init_lora_ga, method, context, on_layer)
    for name, init in inits.items():
        if not init.a_RI.any():
            shape = get_factors_shape((init.a_RI, init.b_OR))
            fresh = init_factors(seed=seed, name=name, shape=shape, rank=method.rank)
            inits[name] = LowRankInit(*fresh, subtract_from_base=True)
    return inits


def save_inits(runs: RunStore, inits: Mapping[str, LowRankInit]) -> None:
    """Save the inits for `load_inits`."""
    runs.store.put(runs.key(LOW_RANK_INIT), pack_inits(inits))


def load_inits(runs: RunStore) -> dict[str, LowRankInit]:
    """Return the inits of an earlier try of this run. Raise NotInStore."""
    return unpack_inits(runs.store.get(runs.key(LOW_RANK_INIT)))


def pack_inits(inits: Mapping[str, LowRankInit]) -> bytes:
    """Pack inits as safetensors."""
    tensors = {}
    for name, init in inits.items():
        tensors[f"{name}/a_RI"], tensors[f"{name}/b_OR"] = init.a_RI, init.b_OR
        if init.residual is not None:
            tensors[f"{name}/residual"] = init.residual
    subtract = any(init.subtract_from_base for init in inits.values())
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    contiguous[SUBTRACT_KEY] = torch.tensor([subtract])
    return save(contiguous)


def unpack_inits(packed: bytes) -> dict[str, LowRankInit]:
    """Return the inits that `pack_inits` packed."""
    tensors = load(packed)
    subtract = bool(tensors.pop(SUBTRACT_KEY))
    names = dict.fromkeys(key.rpartition("/")[0] for key in tensors)
    return {
        name: LowRankInit(
            tensors[f"{name}/a_RI"],
            tensors[f"{name}/b_OR"],
            subtract_from_base=subtract,
            residual=tensors.get(f"{name}/residual"),
        )
        for name in names
    }


def _decide_inits(
    matrices: Iterable[tuple[str, Tensor]],
    shapes: Shapes,
    decompose: Callable[..., LowRankInit],
    method: MethodSection,
    context: WorkerContext,
    on_layer: LayerCallback,
) -> dict[str, LowRankInit]:

    def compute_factors(matrix_OI: Tensor, experts: int) -> Tensor:
        inits = [
            decompose(part, rank=method.rank, scale=method.scale)
            for part in matrix_OI.chunk(experts)
        ]
        a_RI, b_OR = stack_experts((init.a_RI, init.b_OR) for init in inits)
        return torch.cat((a_RI.flatten(), b_OR.flatten()))

    def list_work() -> Iterator[tuple[str, int, Callable[[], Tensor]]]:
        for name, matrix_OI in matrices:
            length = count_factor_entries(shapes[name], method.rank)
            experts = count_experts(shapes[name])
            yield name, length, partial(compute_factors, matrix_OI, experts)

    inits = {}
    for name, flat in _share_work(list_work(), context, on_layer):
        a_shape, b_shape = get_factor_shapes(shapes[name], method.rank)
        a, b = torch.split(flat, [math.prod(a_shape), math.prod(b_shape)])
        factors = a.view(a_shape), b.view(b_shape)
        inits[name] = LowRankInit(*factors, subtract_from_base=True)
    return inits


def _share_work(
    work: Iterable[tuple[str, int, Callable[[], Tensor]]],
    context: WorkerContext,
    on_layer: LayerCallback,
) -> Iterator[tuple[str, Tensor]]:
    """Compute each piece on the rank that owns it, and return it on all, flat and float32."""
    for index, (name, length, make) in enumerate(work):
        owner = index % context.world_size
        flat = torch.zeros(length, device=context.device)
        if owner == context.rank:
            flat = make().float().to(context.device)
        yield name, context.collectives.broadcast(flat, owner, HANDOFF).cpu()
        on_layer(name)
