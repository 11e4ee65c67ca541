"""Where a low-rank stage starts: the hand-off, LoRA's own draw, weights or gradients.

The layers are dealt to the ranks, one dense matrix at a time on each, and sent to all. A start that
can't be had again from the seed alone lies in the run's folder, for a run that goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from jobs.base_shards import whole
from jobs.spec import MethodSection
from jobs.store.runs import STARTS, RunStore
from jobs.team import HANDOFF, Team
from slora.factor_mask import masked
from slora.handoff import Refine, hand_off
from slora.initial import lora_ga, pissa
from slora.lowrank import fresh_factors
from slora.mask import Mask
from slora.plain import matrix
from slora.start import Start

Shapes = Mapping[str, tuple[int, int]]
Seen = Callable[[str], None]
"""Told each layer's name when its start is there."""
MINUS = "minus"


@dataclass(frozen=True)
class LayerHandoff:
    """What the hand-off kept of one layer's update."""

    name: str
    kept: float
    """Share of the update's energy that the rank holds."""
    error: float
    """`||dW - scale B A|| / ||dW||`, what is kept beside the factors not counted."""
    norm: float
    """Of the whole update, Frobenius."""
    rank: int
    """In effect: below the spec's where the update has no more."""


def hand_over(
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Mask],
    method: MethodSection,
    team: Team,
    *,
    seed: int,
    seen: Seen,
) -> tuple[dict[str, Start], list[LayerHandoff]]:
    """Each layer's sparse update as a start, and what was kept of it. A collective."""
    rank, keeps = method.rank, method.handoff.residual != "drop"

    def made(name: str, mask: Mask) -> Tensor:
        found = hand_off(
            weights[f"{name}.values"],
            mask,
            rank=rank,
            scale=method.scale,
            split=method.handoff.split,
            rescale=method.handoff.rescale,
            residual=method.handoff.residual,
            refine=_refining(name, mask.shape, method, seed=seed),
        )
        facts = torch.tensor([found.kept, found.error, found.norm, float(found.rank_in_effect)])
        parts = [found.a_RI.flatten(), found.b_OR.flatten(), facts]
        return torch.cat([*parts, found.residual] if found.residual is not None else parts)

    def packed() -> Iterator[tuple[str, int, Callable[[], Tensor]]]:
        for name, mask in masks.items():
            length = rank * sum(mask.shape) + 4 + (mask.nnz if keeps else 0)
            yield name, length, lambda name=name, mask=mask: made(name, mask)  # type: ignore[misc]

    starts, told = {}, []
    for name, flat in _shared(packed(), team, seen):
        rows, columns = masks[name].shape
        sizes = [rank * columns, rank * rows, 4]
        a, b, facts, residual = torch.split(flat, [*sizes, flat.numel() - sum(sizes)])
        minus = method.handoff.residual == "fold"
        factors = a.view(rank, columns), b.view(rows, rank)
        starts[name] = Start(*factors, minus=minus, residual=residual if keeps else None)
        kept, error, norm, effective = facts.tolist()
        told.append(LayerHandoff(name, kept, error, norm, int(effective)))
    return starts, told


def _refining(name: str, shape: tuple[int, int], method: MethodSection, *, seed: int) -> Refine:
    """What the low-rank stage will make of a layer's factors: known before they are judged.

    Ranks that the update does not fill get LoRA's own A, beside their B of zero: with both factors
    zero such a rank would have no gradient, and never learn. Sparse factors lose their rest.
    """
    fixed = method.factor_density < 1 and method.factor_pruning == "fixed"

    def refine(a_RI: Tensor, b_OR: Tensor, effective: int) -> tuple[Tensor, Tensor]:
        if effective < method.rank:
            fresh, _ = fresh_factors(seed=seed, name=name, shape=shape, rank=method.rank)
            a_RI = torch.cat((a_RI[:effective], fresh[effective:]))
        return masked(a_RI, b_OR, method.factor_density, seed, name) if fixed else (a_RI, b_OR)

    return refine


def own_starts(shapes: Shapes, method: MethodSection, *, seed: int) -> dict[str, Start]:
    """LoRA's own start: A drawn, B zero."""
    return {
        name: Start(*fresh_factors(seed=seed, name=name, shape=shape, rank=method.rank))
        for name, shape in shapes.items()
    }


def starts_from_weights(
    layers: Mapping[str, nn.Module], method: MethodSection, team: Team, seen: Seen
) -> dict[str, Start]:
    """PiSSA: the best rank-r part of each weight, taken out of the base. A collective."""

    def pairs() -> Iterator[tuple[str, Tensor]]:
        for name, layer in layers.items():
            with whole(layer.weight):  # type: ignore[arg-type]
                yield name, matrix(layer)

    return _from_matrices(pairs(), pissa, method, team, seen)


def starts_from_gradients(
    gradients: Iterable[tuple[str, Tensor]],
    method: MethodSection,
    team: Team,
    *,
    seed: int,
    seen: Seen,
) -> dict[str, Start]:
    """LoRA-GA: singular vectors of each weight's first gradient. A collective.

    A layer that no calibration gradient reached starts as LoRA's own does.
    """
    starts = _from_matrices(gradients, lora_ga, method, team, seen)
    for name, start in starts.items():
        if not start.a_RI.any():
            shape = (start.b_OR.shape[0], start.a_RI.shape[1])
            fresh = fresh_factors(seed=seed, name=name, shape=shape, rank=method.rank)
            starts[name] = Start(*fresh, minus=True)
    return starts


def save_starts(runs: RunStore, starts: Mapping[str, Start]) -> None:
    """Writes what `load_starts` reads."""
    runs.store.put(runs.key(STARTS), pack_starts(starts))


def load_starts(runs: RunStore) -> dict[str, Start]:
    """The starts that an earlier try of this run began from. Raises NotFound."""
    return unpack_starts(runs.store.get(runs.key(STARTS)))


def pack_starts(starts: Mapping[str, Start]) -> bytes:
    """Starts as safetensors."""
    tensors = {}
    for name, start in starts.items():
        tensors[f"{name}/a_RI"], tensors[f"{name}/b_OR"] = start.a_RI, start.b_OR
        if start.residual is not None:
            tensors[f"{name}/residual"] = start.residual
    minus = any(start.minus for start in starts.values())
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    plain[MINUS] = torch.tensor([minus])
    return save(plain)


def unpack_starts(packed: bytes) -> dict[str, Start]:
    """What `pack_starts` made."""
    tensors = load(packed)
    minus = bool(tensors.pop(MINUS))
    names = dict.fromkeys(key.rpartition("/")[0] for key in tensors)
    return {
        name: Start(
            tensors[f"{name}/a_RI"],
            tensors[f"{name}/b_OR"],
            minus=minus,
            residual=tensors.get(f"{name}/residual"),
        )
        for name in names
    }


def _from_matrices(
    matrices: Iterable[tuple[str, Tensor]],
    make: Callable[..., Start],
    method: MethodSection,
    team: Team,
    seen: Seen,
) -> dict[str, Start]:
    shapes: dict[str, tuple[int, int]] = {}

    def made(matrix_OI: Tensor) -> Tensor:
        start = make(matrix_OI, rank=method.rank, scale=method.scale)
        return torch.cat((start.a_RI.flatten(), start.b_OR.flatten()))

    def packed() -> Iterator[tuple[str, int, Callable[[], Tensor]]]:
        for name, found in matrices:
            shapes[name] = (found.shape[0], found.shape[1])
            length = method.rank * sum(shapes[name])
            yield name, length, lambda found=found: made(found)  # type: ignore[misc]

    starts = {}
    for name, flat in _shared(packed(), team, seen):
        rows, columns = shapes[name]
        a, b = torch.split(flat, [method.rank * columns, method.rank * rows])
        factors = a.view(method.rank, columns), b.view(rows, method.rank)
        starts[name] = Start(*factors, minus=True)
    return starts


def _shared(
    work: Iterable[tuple[str, int, Callable[[], Tensor]]], team: Team, seen: Seen
) -> Iterator[tuple[str, Tensor]]:
    """Each piece made by the rank whose turn it is, as one flat float32 vector on every rank."""
    for number, (name, length, make) in enumerate(work):
        turn = number % team.world_size
        flat = torch.zeros(length, device=team.device)
        if turn == team.rank:
            flat = make().float().to(team.device)
        yield name, team.wire.broadcast(flat, turn, HANDOFF).cpu()
        seen(name)
