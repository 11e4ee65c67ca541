"""Scores from gradients: calibration sequences through the base model, reduced over the ranks.

O, I: rows and columns of a weight.

The unit is one sequence, on whichever rank. Units are summed in float64 and the sum is rounded to
float32: sums of several hundred float32 numbers in another order differ far below that rounding,
so a mask does not depend on the distribution of the sequences or on the number of ranks.

Layers are processed in groups, each with its own pass over the sequences, so that the scores never
exist all at once: a group holds at least one layer, and at most half of all or 1 GiB of sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slora.errors import BadMask
from slora.layers.base_layers import flatten_blocks, get_features, get_weight_matrix
from slora.masks.strategy import Scorer

MAX_SUM_BYTES = 1 << 30
"""Largest size in bytes of the float64 sums of one pass, unless a single layer needs more."""

Layers = Mapping[str, Any]
"""Base layers by name: `nn.Linear`, Conv1D or fused experts."""
CalibrationPass = Callable[[], int]
"""Run forward and backward over this rank's sequences, one at a time, and return their number."""
GatherContext = Callable[[Tensor], AbstractContextManager[None]]
"""Return a context in which a weight is gathered and readable, for bases that are sharded."""
SumOverRanks = Callable[[Tensor], Tensor]
"""Return the sum of a tensor over all ranks."""


def _skip_gather(weight: Tensor) -> AbstractContextManager[None]:
    return nullcontext()


def _sum_over_ranks(total: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total


def score_layers(
    layers: Layers,
    scorer: Scorer,
    run_pass: CalibrationPass,
    *,
    gathered: GatherContext = _skip_gather,
    sum_over_ranks: SumOverRanks = _sum_over_ranks,
) -> Iterator[tuple[str, Tensor]]:
    """Yield each layer's score, float32 `[O, I]` on the CPU, equal on every rank. A collective.

    The model is left unchanged: no gradient, the same `requires_grad`. Raise BadMask if there was
    no sequence.
    """
    if scorer.unit is None:
        for name, layer in layers.items():
            with gathered(layer.weight):
                score = scorer.finish(get_weight_matrix(layer).detach(), None, 0).float().cpu()
            yield name, score
        return
    for group in group_layers(layers):
        for name, total, units in _sum_units(group, scorer.unit, run_pass, sum_over_ranks):
            with gathered(group[name].weight):
                weight = get_weight_matrix(group[name]).detach()
                score = scorer.finish(weight, total.to(weight.device), units).float().cpu()
            yield name, score


def compute_mean_gradients(
    layers: Layers, run_pass: CalibrationPass, *, sum_over_ranks: SumOverRanks = _sum_over_ranks
) -> Iterator[tuple[str, Tensor]]:
    """Yield each layer's mean gradient, float32 `[O, I]` on the CPU. A collective."""
    for group in group_layers(layers):
        for name, total, units in _sum_units(
            group, lambda _, gradient: gradient, run_pass, sum_over_ranks
        ):
            yield name, (total / units).float().cpu()


def group_layers(layers: Layers) -> Iterator[dict[str, Any]]:
    """Yield the layers in order, in groups whose sums stay within the limit."""
    sizes = {name: 8 * math.prod(get_features(layer)) for name, layer in layers.items()}
    max_bytes = min(sum(sizes.values()) // 2, MAX_SUM_BYTES)
    group: dict[str, Any] = {}
    group_bytes = 0
    for name, layer in layers.items():
        if group and group_bytes + sizes[name] > max_bytes:
            yield group
            group, group_bytes = {}, 0
        group[name] = layer
        group_bytes += sizes[name]
    if group:
        yield group


@dataclass
class _RunningSum:
    """The running sum of a layer, in float64."""

    total: Tensor

    def add(self, unit: Tensor) -> None:
        self.total += unit


def _sum_units(
    group: Layers,
    unit: Callable[[Tensor, Tensor], Tensor],
    run_pass: CalibrationPass,
    sum_over_ranks: SumOverRanks,
) -> Iterator[tuple[str, Tensor, int]]:
    """Yield each layer's sum of units over all ranks, and the number of units."""
    sums = {
        name: _RunningSum(
            torch.zeros(get_features(layer), dtype=torch.float64, device=layer.weight.device)
        )
        for name, layer in group.items()
    }
    with _fold_gradients(group, sums, unit):
        count = run_pass()
    units = int(
        sum_over_ranks(torch.tensor(float(count), dtype=torch.float64, device=_get_device(group)))
    )
    if not units:
        raise BadMask("there are no calibration sequences: use more data, or a mask without scores")
    for name in list(sums):
        yield name, sum_over_ranks(sums.pop(name).total), units


@contextmanager
def _fold_gradients(
    group: Layers, sums: Mapping[str, _RunningSum], unit: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[None]:
    """Add each gradient of the group's weights to its running sum and drop it."""
    weights = {name: layer.weight for name, layer in group.items()}
    requires_grad = {name: weight.requires_grad for name, weight in weights.items()}
    handles = []

    def make_fold_hook(name: str) -> Callable[[Tensor], None]:
        def fold_gradient(weight: Tensor) -> None:
            assert weight.grad is not None
            layer = group[name]
            gradient = flatten_blocks(layer, weight.grad)
            sums[name].add(unit(get_weight_matrix(layer).detach(), gradient))
            weight.grad = None

        return fold_gradient

    for name, weight in weights.items():
        weight.requires_grad_(True)
        handles.append(weight.register_post_accumulate_grad_hook(make_fold_hook(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, weight in weights.items():
            weight.requires_grad_(requires_grad[name])
            weight.grad = None


def _get_device(group: Layers) -> torch.device:
    device: torch.device = next(iter(group.values())).weight.device
    return device
