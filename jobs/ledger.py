"""A run's bill while it runs: tokens, seconds, memory, bytes on the wire. Kept in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.peak import peaks
from jobs.plan import Plan
from jobs.team import Team


class Ledger(dict[str, Any]):
    """Figures by name. What the wire counts is asked of it when the bill is written."""

    def __init__(self, team: Team) -> None:
        super().__init__(tokens=0, seconds=0.0)
        self._team = team

    def add(self, name: str, seconds: float) -> None:
        """More time for this."""
        self[name] = self.get(name, 0.0) + seconds

    def measure_memory(self) -> None:
        """The workers' peaks so far; a collective."""
        self["memory"] = peaks(self._team)

    def kept(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {**self, "wire": self._team.wire.ledger()}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Goes on from what `kept` made."""
        self.clear()
        self.update(kept)
        self._team.wire.restore(self.pop("wire", {}))

    def close(self, plan: Plan, steps: int) -> None:
        """The last figures; a collective."""
        for stage in plan.stages:
            self[f"{stage.name}_trainable"] = stage.trainable + plan.head
        self["model_parameters"] = plan.model_parameters
        self["steps"] = steps
        self.measure_memory()
        self |= {
            "wire": self._team.wire.ledger(),
            "steps_by_stage": {stage.name: stage.steps for stage in plan.stages},
            "workers": self._team.world_size,
            "nodes": self._team.nodes,
            "sharding": plan.sharding,
        }
