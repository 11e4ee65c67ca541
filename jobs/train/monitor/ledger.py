"""A run's bill while it runs: tokens, seconds, memory, bytes on the wire. Kept in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.plan.plan import Plan
from jobs.train.comm.collectives import WorkerContext
from jobs.train.monitor.usage import gather_memory_peaks


class Ledger(dict[str, Any]):
    """Figures by name. What the wire counts is asked of it when the bill is written."""

    def __init__(self, context: WorkerContext) -> None:
        super().__init__(tokens=0, seconds=0.0)
        self._context = context

    def add_seconds(self, name: str, seconds: float) -> None:
        """More time for this."""
        self[name] = self.get(name, 0.0) + seconds

    def measure_memory(self) -> None:
        """The workers' peaks so far; a collective."""
        self["memory"] = gather_memory_peaks(self._context)

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {**self, "wire": self._context.collectives.get_traffic()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Goes on from what `kept` made."""
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
