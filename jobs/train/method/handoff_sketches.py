"""The sketches that a hand-off needs of its layers, from one pass over the calibration sequences.

I, O: columns and rows of a weight. K: columns of a sketch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from jobs.spec.schema import MethodSection
from jobs.train.method.runner import load_weights
from jobs.train.model.shard_access import gather_for_writing
from slora.handoff.capture import CountedTokens, sketch_layers
from slora.handoff.linear_update import SparseUpdate
from slora.handoff.sketch import LayerSketch, start_sketch
from slora.handoff.sketch_size import count_sketch_numbers
from slora.layers.install import install_sparse, iter_adapter_layers, remove_layers
from slora.layers.shapes import count_experts
from slora.masks.mask import Mask

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
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Mask],
    method: MethodSection,
    make_pass: SketchPassFactory,
    sum_over_ranks: Callable[[Tensor], Tensor],
    *,
    seed: int,
) -> dict[str, LayerSketch]:
    """Return the sketch of each layer that has one, the same on every rank. A collective.

    The model runs with the sparse stage's trained `weights`, and has its plain layers again
    afterwards. Empty if the norm needs none, or nothing was trained. Fused experts read their
    weights past any layer, and have no sketch.
    """
    if not needs_sketches(weights, masks, method):
        return {}
    install_sparse(model, masks)
    load_weights(model, weights)
    try:
        return sketch_installed(model, weights, masks, method, make_pass, sum_over_ranks, seed=seed)
    finally:
        remove_layers(model, writable=gather_for_writing)


def needs_sketches(
    weights: Mapping[str, Tensor], masks: Mapping[str, Mask], method: MethodSection
) -> bool:
    """Return whether the hand-off's norm needs sketches: an update of zero has none to lose."""
    return method.handoff.norm != "weights" and any(
        bool(weights[f"{name}.values"].any()) for name in masks
    )


def sketch_installed(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Mask],
    method: MethodSection,
    make_pass: SketchPassFactory,
    sum_over_ranks: Callable[[Tensor], Tensor],
    *,
    seed: int,
) -> dict[str, LayerSketch]:
    """Return the sketches of a model whose sparse layers have these weights. A collective."""
    gradients = method.handoff.norm == "loss"
    layers = dict(iter_adapter_layers(model))
    shapes = {name: mask.shape for name, mask in masks.items()}
    groups = list(group_sketches(shapes, method.rank, gradients=gradients))
    run_pass = make_pass(gradients, len(groups))
    sketches = dict[str, LayerSketch]()
    for names in groups:
        device = layers[names[0]].weight.device
        group = start_sketches(
            weights, {name: masks[name] for name in names}, method, seed=seed, device=device
        )
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
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Mask],
    method: MethodSection,
    *,
    seed: int,
    device: torch.device | None = None,
) -> dict[str, LayerSketch]:
    """Return the empty sketches of all layers that can have one, in the masks' order."""
    return {
        name: start_sketch(
            SparseUpdate(weights[f"{name}.values"], mask),
            rank=method.rank,
            seed=seed,
            name=name,
            gradients=method.handoff.norm == "loss",
            device=device,
        )
        for name, mask in masks.items()
        if count_experts(mask.shape) == 1
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
