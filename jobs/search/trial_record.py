"""What a search knows of each of its trials: one row, as plain values, for tables and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

TrialStatus = Literal["waiting", "running", "done", "stopped", "failed", "rejected"]
FINAL_STATUSES: tuple[TrialStatus, ...] = ("done", "stopped", "failed", "rejected")
"""stopped: early, by the scheduler or the budget; rejected: by the plan, before it started."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial. What is not known (yet) is None."""

    number: int
    """From 0, in the order in which trials were proposed."""
    config: Mapping[str, Any]
    """The searched keys and this trial's values, as `{"method.rank": 8}`."""
    status: TrialStatus = "waiting"
    run: str = ""
    """The trial's run in the store."""
    metric: float | None = None
    """The search's metric where the trial ended, or at its newest evaluation."""
    curve: tuple[tuple[int, float], ...] = ()
    """Step and metric of each evaluation."""
    steps: int = 0
    """Optimiser steps taken."""
    tokens: int = 0
    seconds: float = 0.0
    """That it held its workers, start-up included; not those that it was paused."""
    trainable_share: float | None = None
    """Of the model's parameters, in the stage that trains most."""
    node_bytes: float | None = None
    """Bytes out of a node over the whole run, by the plan."""
    adapter_bytes: float | None = None
    """Of the adapter's file, by the plan."""
    memory_bytes: float | None = None
    """Peak of a worker, by the plan."""
    reason: str = ""
    """Why it failed, was rejected, or was stopped; one line."""
    shared: tuple[str, ...] = field(default=())
    """What it took over instead of doing it: 'scores', 'sparse stage', 'first evaluation'."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in FINAL_STATUSES

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From what `plain` gave, after JSON made lists of its tuples."""
        curve = tuple((int(step), float(value)) for step, value in values["curve"])
        return cls(**{**values, "curve": curve, "shared": tuple(values["shared"])})
