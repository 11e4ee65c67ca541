"""The stages of a run: what each puts into the model, and how one hands over to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jobs.spec import MethodSection
from slora.adapt import install_lora, install_sparse
from slora.handoff import factor
from slora.lowrank import fresh_factors
from slora.mask import Mask, random_mask
from slora.sparse import dense_delta

Shapes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class LayerHandoff:
    """What the hand-off kept of one layer's update."""

    name: str
    kept: float
    error: float
    norm: float
    """Of the whole update, Frobenius."""


def draw_masks(shapes: Shapes, *, seed: int, density: float) -> dict[str, Mask]:
    """Every layer's mask, the same on every rank."""
    return {
        name: random_mask(seed=seed, name=name, shape=shape, density=density)
        for name, shape in shapes.items()
    }


def start_sparse(model: nn.Module, masks: Mapping[str, Mask]) -> None:
    """The sparse stage: a vector of zeros for each layer's mask."""
    install_sparse(model, masks)


def start_low_rank(
    model: nn.Module,
    shapes: Shapes,
    method: MethodSection,
    *,
    seed: int,
    factors: Mapping[str, tuple[Tensor, Tensor]] | None,
) -> None:
    """The low-rank stage, from the hand-off's factors or from LoRA's own start."""
    if factors is None:
        factors = {
            name: fresh_factors(seed=seed, name=name, shape=shape, rank=method.rank)
            for name, shape in shapes.items()
        }
    install_lora(model, factors, scale=method.alpha / method.rank)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Puts saved trainable tensors into a model that DeepSpeed does not hold yet."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.items():
            parameters[name].copy_(tensor)


def hand_over(
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Mask],
    method: MethodSection,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
) -> tuple[dict[str, tuple[Tensor, Tensor]], list[LayerHandoff]]:
    """Each layer's sparse update as factors (a_RI, b_OR), and what was kept. A collective.

    The layers are dealt to the ranks, one dense matrix at a time on each, and sent to all.
    """
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    told: list[LayerHandoff] = []
    for number, (name, mask) in enumerate(masks.items()):
        rows, columns = mask.shape
        packed = torch.zeros(method.rank * (rows + columns) + 3, device=device)
        if number % world_size == rank:
            packed = _packed(weights[f"{name}.values"], mask, method).to(device)
        if world_size > 1:
            torch.distributed.broadcast(packed, src=number % world_size)
        a, b, facts = torch.split(packed.cpu(), [method.rank * columns, method.rank * rows, 3])
        kept, error, norm = facts.tolist()
        factors[name] = (a.view(method.rank, columns), b.view(rows, method.rank))
        told.append(LayerHandoff(name, kept, error, norm))
    return factors, told


def _packed(values: Tensor, mask: Mask, method: MethodSection) -> Tensor:
    delta = dense_delta(values, mask)
    found = factor(
        delta, rank=method.rank, scale=method.alpha / method.rank, split=method.handoff.split
    )
    facts = torch.tensor([found.kept, found.error, float(delta.norm())])
    return torch.cat((found.a_RI.flatten(), found.b_OR.flatten(), facts))
