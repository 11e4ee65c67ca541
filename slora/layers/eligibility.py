"""What of a model is adapted, and why the rest is not: plain records, for the plan. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from slora.layers.patterns import list_layer_kinds
from slora.layers.shapes import LayerShape, get_expert_shape

NO_LAYER = ("norm or bias", "embedding")
"""Reasons that every transformer has, and that a plan need not tell."""
UNSUPPORTED_BY_PEFT = dict.fromkeys(
    ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"), ("out_proj",)
)
"""Layers that stock PEFT refuses by name, by the model's type: a fused kernel reads their weight
past the layer (`peft.tuners.tuners_utils._check_lora_target_modules_mamba`, PEFT 0.21)."""


@dataclass(frozen=True)
class ParameterRecord:
    """One parameter of a model."""

    name: str
    size: int
    layer: str | None = None
    """The layer that it makes a possible target; None for a bias, a norm and the like."""
    shape: LayerShape | None = None
    """The layer's [O, I], with its experts."""
    reason: str = ""
    """Why it is never adapted; empty for a target of `all-linear`."""

    @property
    def is_target(self) -> bool:
        """Return True if `all-linear` adapts it."""
        return self.layer is not None and not self.reason


def exclude_small(records: Iterable[ParameterRecord], min_side: int) -> list[ParameterRecord]:
    """Return the records, without layers that have no room for a rank of `min_side` as targets."""
    return [
        ParameterRecord(
            record.name, record.size, record.layer, record.shape,
            f"smaller than a rank of {min_side}",
        )
        if record.is_target and record.shape and min(get_expert_shape(record.shape)) < min_side
        else record
        for record in records
    ]  # fmt: skip


def list_excluded(records: Iterable[ParameterRecord]) -> list[str]:
    """Return a line for each reason why something other than norms, biases and embeddings is not
    adapted: "convolution: linear_attn.conv1d (2 weights, 512 parameters)".
    """
    by_reason: dict[str, list[ParameterRecord]] = {}
    for record in records:
        if record.reason and record.reason not in NO_LAYER:
            by_reason.setdefault(record.reason, []).append(record)
    return [_describe(reason, excluded) for reason, excluded in by_reason.items()]


def _describe(reason: str, records: list[ParameterRecord]) -> str:
    kinds = ", ".join(list_layer_kinds(record.layer or record.name for record in records))
    weights = "1 weight" if len(records) == 1 else f"{len(records)} weights"
    size = sum(record.size for record in records)
    return f"{reason}: {kinds} ({weights}, {size:,} parameters)"
