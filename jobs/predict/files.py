"""What a run leaves in the store: bytes of a checkpoint and of the adapter."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.predict.question import Stage
from jobs.spec import MethodSection
from slora.sizes import STRUCTURES

FLOAT32, PLACE = 4, 4
"""Bytes of a number, and of where it lies, which is stored where no seed can tell it."""
HEADER = 110
"""Bytes of a safetensors header for each tensor, about."""
STATE = 3
"""A checkpoint has the weights and both moments, in float32."""


def checkpoint_bytes(stage: Stage) -> int:
    """One checkpoint inside this stage."""
    return STATE * FLOAT32 * stage.trained


def adapter_bytes(
    method: MethodSection,
    targets: Mapping[str, tuple[int, int]],
    entries: Mapping[str, int],
    *,
    head: int,
    whole: int,
) -> int:
    """The adapter's tensors, or the model's in kind full: `whole` bytes. About, headers too."""
    if method.kind == "full":
        return whole
    values = _values(method, targets, entries) if _has_values(method) else 0
    factors = 0 if method.kind == "sparse" else _factors(method, targets)
    tensors = len(targets) * (2 if factors else 0) + len(targets) * (1 if values else 0)
    return FLOAT32 * head + values + factors + HEADER * tensors


def _has_values(method: MethodSection) -> bool:
    return method.kind == "sparse" or (
        method.kind == "slora" and method.handoff.residual in ("keep", "fold")
    )


def _values(
    method: MethodSection, targets: Mapping[str, tuple[int, int]], entries: Mapping[str, int]
) -> int:
    stored = sum(entries.values()) * FLOAT32
    if method.mask == "random":
        return stored
    if method.mask in STRUCTURES:
        # The rows and columns themselves, not each entry.
        return stored + PLACE * sum(map(sum, targets.values()))
    return stored + PLACE * sum(entries.values())


def _factors(method: MethodSection, targets: Mapping[str, tuple[int, int]]) -> int:
    whole = FLOAT32 * method.rank * sum(map(sum, targets.values()))
    folded = method.kind == "slora" and method.handoff.residual == "fold"
    # A start that was taken out of the weight is stored beside what was trained.
    whole *= 2 if folded or method.init != "zero" else 1
    if method.factor_density == 1:
        return whole
    share = whole * method.factor_density
    return round(share if method.factor_pruning == "gates" else share * (1 + PLACE / FLOAT32))
