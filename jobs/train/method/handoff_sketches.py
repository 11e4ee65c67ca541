"""The sketches that a hand-off needs of its layers, from one pass over the calibration sequences.

I, O: columns and rows of a weight. K: columns of a sketch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from jobs.train.method.runner import load_weights
from jobs.train.method.sparse_updates import SparseUpdates
from jobs.train.model.shard_access import gather_for_writing
from slora.handoff.capture import CountedTokens, sketch_layers
from slora.handoff.sketch import LayerSketch, start_sketch
from slora.handoff.sketch_size import count_sketch_numbers
from slora.layers.install import install_sparse, iter_adapter_layers, remove_layers
from slora.layers.shapes import count_experts

MAX_SKETCH_BYTES = 1 << 30
"""Largest size in bytes of the sketches of one pass, unless those of a single layer are larger."""
FLOAT32 = 4
SketchPass = Callable[[CountedTokens], int]
"""Run over this rank's sequences, one at a time, each after its tokens have been named; return
their number."""
SketchPassFactory = Callable[[bool, int], SketchPass]
"""Return a pass, with gradients or without, that will be run this often."""


def collect_sketches(
    model: nn.Module,
    updates: SparseUpdates,
    make_pass: SketchPassFactory,
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> dict[str, LayerSketch]:
    """Return the sketch of each layer that has one, the same on every rank. A collective.

    The model runs with the sparse stage's trained weights, and has its plain layers again
    afterwards. Empty if the norm needs none, or nothing was trained. Fused experts read their
    weights past any layer, and have no sketch.
    """
    if not needs_sketches(updates):
        return {}
    install_sparse(model, updates.masks)
    load_weights(model, updates.weights)
    try:
        return sketch_installed(model, updates, make_pass, sum_over_ranks)
    finally:
        remove_layers(model, writable=gather_for_writing)


def needs_sketches(updates: SparseUpdates) -> bool:
    """Return whether the hand-off's norm needs sketches: an update of zero has none to lose."""
    return updates.method.handoff.norm != "weights" and any(
        bool(updates.get_values(name).any()) for name in updates.masks
    )


def sketch_installed(
    model: nn.Module,
    updates: SparseUpdates,
    make_pass: SketchPassFactory,
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> dict[str, LayerSketch]:
    """Return the sketches of a model whose sparse layers have these weights. A collective."""
    layers = dict(iter_adapter_layers(model))
    shapes = {name: mask.shape for name, mask in updates.masks.items()}
    gradients = updates.needs_gradients
    groups = list(group_sketches(shapes, updates.method.rank, gradients=gradients))
    run_pass = make_pass(gradients, len(groups))
    sketches = dict[str, LayerSketch]()
    for names in groups:
        device = layers[names[0]].weight.device
        group = start_sketches(updates, names, device=device)
        tokens = CountedTokens()
        with sketch_layers(layers, group, tokens):
            run_pass(tokens)
        model.zero_grad(set_to_none=True)
        for sketch in group.values():
            sketch.unpack(sum_over_ranks(sketch.pack()).cpu())
            sketch.probe_IK = sketch.probe_IK.cpu()
        sketches |= group
    return sketches


def start_sketches(
    updates: SparseUpdates,
    names: Iterable[str] | None = None,
    *,
    device: torch.device | None = None,
) -> dict[str, LayerSketch]:
    """Return the empty sketches of the named layers that can have one, by default of all, in the
    masks' order.
    """
    return {
        name: start_sketch(
            updates.get_update(name),
            rank=updates.method.rank,
            seed=updates.seed,
            name=name,
            gradients=updates.needs_gradients,
            device=device,
        )
        for name in (updates.masks if names is None else names)
        if count_experts(updates.masks[name].shape) == 1
    }


def group_sketches(
    shapes: Mapping[str, tuple[int, int]], rank: int, *, gradients: bool
) -> Iterator[list[str]]:
    """Yield the names of the layers that have sketches, in groups that fit on a device together."""
    group, group_bytes = list[str](), 0
    for name, shape in shapes.items():
        if count_experts(shape) > 1:
            continue
        # A sketch has a probe as large as its sums.
        size = 2 * FLOAT32 * count_sketch_numbers(shape, rank, gradients=gradients)
        if group and group_bytes + size > MAX_SKETCH_BYTES:
            yield group
            group, group_bytes = [], 0
        group.append(name)
        group_bytes += size
    if group:
        yield group
