"""Sizes of the files that a run writes: checkpoints and the adapter."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.plan.estimate.inputs import StageFacts
from jobs.spec.schema import MethodSection
from slora.layers.shapes import count_factor_entries
from slora.masks.sizes import STRUCTURES, count_trained_factors

FLOAT32, INDEX = 4, 4
"""Bytes of a value, and of its index, which is stored unless a seed reproduces it."""
HEADER = 110
"""Approximate bytes of a safetensors header per tensor."""
STATE = 3
"""A checkpoint holds the weights and both moments, in float32."""


def estimate_checkpoint(stage: StageFacts) -> int:
    """Return the bytes of a checkpoint in this stage."""
    return STATE * FLOAT32 * stage.trained


def estimate_adapter(
    method: MethodSection,
    targets: Mapping[str, tuple[int, int]],
    entries: Mapping[str, int],
    *,
    head: int,
    model_bytes: int,
) -> int:
    """Return the approximate bytes of the adapter's tensors, or of the model in kind full."""
    if method.kind == "full":
        return model_bytes
    values = _count_value_bytes(method, targets, entries) if _has_values(method) else 0
    factors = 0 if method.kind == "sparse" else _count_factor_bytes(method, targets)
    tensors = len(targets) * (2 if factors else 0) + len(targets) * (1 if values else 0)
    return FLOAT32 * head + values + factors + HEADER * tensors


def _has_values(method: MethodSection) -> bool:
    return method.kind == "sparse" or (
        method.kind == "slora" and method.handoff.residual in ("keep", "fold")
    )


def _count_value_bytes(
    method: MethodSection, targets: Mapping[str, tuple[int, int]], entries: Mapping[str, int]
) -> int:
    stored = sum(entries.values()) * FLOAT32
    if method.mask == "random":
        return stored
    if method.mask in STRUCTURES:
        # The indices of rows and columns, not of each entry.
        return stored + INDEX * sum(map(sum, targets.values()))
    return stored + INDEX * sum(entries.values())


def _count_factor_bytes(method: MethodSection, targets: Mapping[str, tuple[int, int]]) -> int:
    entries = sum(count_factor_entries(shape, method.rank) for shape in targets.values())
    size = FLOAT32 * entries
    folded = method.kind == "slora" and method.handoff.residual == "fold"
    # Initial factors that were subtracted from the weight are stored beside the trained ones.
    size *= 2 if folded or method.init != "zero" else 1
    if method.factor_pruning == "gates":
        return round(size * method.factor_density)
    if method.factor_storage == "peft":
        return size
    kind, rank, density = method.factor_mask, method.rank, method.factor_density
    return FLOAT32 * sum(
        sum(count_trained_factors(kind, shape, rank=rank, density=density))
        for shape in targets.values()
    )
