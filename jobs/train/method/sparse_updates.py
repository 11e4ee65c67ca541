"""What a hand-off starts from: the updates that a sparse stage has trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from jobs.spec.schema import MethodSection
from slora.handoff.linear_update import SparseUpdate
from slora.masks.mask import Mask


@dataclass(frozen=True)
class SparseUpdates:
    """The sparse updates of all layers, and what the spec says of their hand-off."""

    weights: Mapping[str, Tensor]
    """Trained by the stage, by the names of the parameters; a layer's values among them."""
    masks: Mapping[str, Mask]
    """By the names of the layers."""
    method: MethodSection
    seed: int
    """Of the run: it decides what is random in a hand-off."""

    @property
    def needs_gradients(self) -> bool:
        """Return whether the norm weights the outputs by their gradients."""
        return self.method.handoff.norm == "loss"

    def get_values(self, name: str) -> Tensor:
        """Return the trained values of a layer."""
        return self.weights[f"{name}.values"]

    def get_update(self, name: str) -> SparseUpdate:
        """Return the update of a layer."""
        return SparseUpdate(self.get_values(name), self.masks[name])
