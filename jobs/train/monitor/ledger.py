"""A run's ledger: tokens, seconds, memory, bytes sent. Saved in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.plan.plan import Plan
from jobs.train.comm.collectives import WorkerContext
from jobs.train.monitor.usage import gather_memory_peaks


class Ledger(dict[str, Any]):
    """Figures by name. The collectives' counts are added when the ledger is written."""

    def __init__(self, context: WorkerContext) -> None:
        super().__init__(tokens=0, seconds=0.0)
        self._context = context

    def add_seconds(self, name: str, seconds: float) -> None:
        """Add seconds to this figure."""
        self[name] = self.get(name, 0.0) + seconds

    def measure_memory(self) -> None:
        """Measure the workers' peak memory. A collective."""
        self["memory"] = gather_memory_peaks(self._context)

    def to_dict(self) -> dict[str, Any]:
        """Return the ledger for a checkpoint."""
        return {**self, "wire": self._context.collectives.get_traffic()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `to_dict` returned."""
        self.clear()
        self.update(saved)
        self._context.collectives.restore(self.pop("wire", {}))

    def close(self, plan: Plan, steps: int, steps_by_stage: Mapping[str, int]) -> None:
        """Write the last figures. A collective."""
        for stage in plan.stages:
            # Set when the stage was opened, where only its masks tell how much it trains.
            self.setdefault(f"{stage.name}_trainable", stage.trainable + plan.head)
        self["model_parameters"] = plan.model_parameters
        self["steps"] = steps
        self.measure_memory()
        self |= {
            "wire": self._context.collectives.get_traffic(),
            "steps_by_stage": dict(steps_by_stage),
            "workers": self._context.world_size,
            "nodes": self._context.node_count,
            "sharding": plan.sharding,
        }
