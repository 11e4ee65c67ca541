"""The change of a model's linear layers by full fine-tuning, in the place of an adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from slora.layers.shapes import LayerShape


@dataclass(frozen=True)
class FullUpdate:
    """What an export reads of a fully fine-tuned model, beside its base."""

    shapes: Mapping[str, LayerShape]
    """Of the layers that a LoRA can hold."""
    compute_layer: Callable[[str], Tensor]
    """Return a layer's change, float32 `[O, I]` or `[E O, I]` on the CPU."""
    base: str
    task: str
    revision: str | None = None
    head: Mapping[str, Tensor] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    problem_type: str = ""
    unheld: tuple[str, ...] = ()
    """Other tensors that were trained, and that a LoRA can't hold: embeddings, norms, biases."""
    factors: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Empty, as `tokens`: an adapter may have them, a full model has none."""
    scale: float = 1.0
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
