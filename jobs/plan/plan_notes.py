"""Notes of a plan: what its method leaves out or loses, and why. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobs.plan.checks import get_min_side, get_sizing_rank
from jobs.spec.schema import RunSpec
from slora.layers.patterns import list_layer_kinds
from slora.layers.shapes import get_expert_shape
from slora.masks.sizes import compute_exact_rank

Layers = Mapping[str, tuple[int, int]]
"""Shapes [out, in] of layers, by name."""


def collect_target_notes(
    spec: RunSpec, linears: Layers, targets: Layers, excluded: Sequence[str]
) -> list[str]:
    """Return notes on what `all-linear` leaves out: what cannot be adapted, and small layers."""
    if not targets or spec.method.targets != "all-linear":
        return []
    side = get_min_side(spec.method)
    matrices = {name: get_expert_shape(shape) for name, shape in linears.items()}
    small = [name for name, shape in matrices.items() if min(shape) < side]
    notes = [f"not adapted: {line}" for line in excluded]
    if small:
        rows, columns = min((matrices[name] for name in small), key=min)
        kinds = ", ".join(list_layer_kinds(small))
        notes.append(
            f"not adapted, because smaller than the rank of {side}: {kinds} "
            f"({len(small)} in all, the smallest has {rows} x {columns})"
        )
    return notes


def collect_handoff_notes(spec: RunSpec, targets: Layers) -> list[str]:
    """Return a note on what the hand-off of a slora run loses, and why."""
    method, rank = spec.method, get_sizing_rank(spec)
    if method.kind != "slora":
        return []
    # Rows and columns that compete without a limit may all fall to one layer.
    unbounded = method.allocation == "global" and method.sizing == "density"
    exact_ranks = {
        name: min(get_expert_shape(size))
        if unbounded
        else compute_exact_rank(method.mask, size, density=method.density, rank=rank)
        for name, size in targets.items()
    }
    lossy = [name for name, exact in exact_ranks.items() if exact > method.rank]
    if not lossy:
        return [f"the hand-off at rank {method.rank} is exact: no update has a higher rank"]
    if method.handoff.residual == "fold":
        return ["the hand-off loses nothing: the part above the rank is folded into the base"]
    worst = max(lossy, key=lambda name: exact_ranks[name])
    return [
        f"the hand-off at rank {method.rank} is not exact: the update under a {method.mask} mask "
        f"can have rank {exact_ranks[worst]} in {worst}, and exceeds the rank in {len(lossy)} of "
        f"{len(targets)} layers. Masks of rows, columns or blocks with sizing: rank are exact"
    ]
