"""What the server remembers about the clients between rounds, and puts into checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from jobs.federation.averaging.flat_layout import VectorLayout, to_bytes, to_vector
from jobs.train.checkpoint import TrainingState

RESIDUAL = "residual"
"""Name of the clients' residuals among the moments of a checkpoint."""


@dataclass
class ClientState:
    """Clients of the current stage, by number."""

    equipped: set[int] = field(default_factory=set)
    """Those that have got the stage's payload."""
    residuals: dict[int, bytes] = field(default_factory=dict)
    """Error feedback from a checkpoint, to be returned to its client with the next task."""
    dropped: int = 0
    """Invalid or missing updates of the whole run."""

    @classmethod
    def restore(cls, state: TrainingState) -> Self:
        """Return the state of a checkpoint."""
        residuals = {
            int(client): to_bytes(residual_n)
            for client, residual_n in state.moments.get(RESIDUAL, {}).items()
        }
        return cls(set(state.record["equipped"]), residuals, state.record["dropped_clients"])

    def start_stage(self) -> None:
        """Forget what belongs to the stage before."""
        self.equipped.clear()
        self.residuals.clear()

    def to_record(self) -> dict[str, Any]:
        """Return the entries of a checkpoint's record."""
        return {"equipped": sorted(self.equipped), "dropped_clients": self.dropped}

    def decode_residuals(
        self, collected: Mapping[int, bytes], layout: VectorLayout
    ) -> dict[str, Tensor]:
        """Return all residuals as tensors by client: those here and those at the sites."""
        residuals = {**self.residuals, **collected}
        return {str(client): to_vector(data, layout) for client, data in residuals.items()}
