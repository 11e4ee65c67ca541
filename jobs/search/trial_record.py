"""The record of one trial of a search, as plain values for tables and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

TrialStatus = Literal["waiting", "running", "done", "stopped", "failed", "rejected"]
FINAL_STATUSES: tuple[TrialStatus, ...] = ("done", "stopped", "failed", "rejected")
"""stopped: early, by the scheduler or the budget; rejected: by its plan, before it started."""


@dataclass(frozen=True)
class TrialRecord:
    """A trial of a search. An unknown value is None."""

    number: int
    """From 0, in the order in which trials were proposed."""
    config: Mapping[str, Any]
    """The searched keys and this trial's values, as `{"method.rank": 8}`."""
    status: TrialStatus = "waiting"
    run: str = ""
    """The run id of the trial in the store."""
    metric: float | None = None
    """The search's metric at the newest evaluation."""
    curve: tuple[tuple[int, float], ...] = ()
    """Step and metric of each evaluation."""
    steps: int = 0
    """Optimiser steps taken."""
    tokens: int = 0
    seconds: float = 0.0
    """Time that it held its workers: start-up included, pauses excluded."""
    trainable_share: float | None = None
    """Share of the model's parameters, in the stage that trains most."""
    node_bytes: float | None = None
    """Bytes out of a node over the whole run, by the plan."""
    adapter_bytes: float | None = None
    """Size of the adapter, by the plan."""
    memory_bytes: float | None = None
    """Peak memory of a worker, by the plan."""
    reason: str = ""
    """One line on why it failed, was rejected, or was stopped."""
    shared: tuple[str, ...] = field(default=())
    """Results of other trials that it used: scores, sparse_stage, first_evaluation."""

    @property
    def is_finished(self) -> bool:
        """Return whether the trial has ended."""
        return self.status in FINAL_STATUSES

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the record of `to_dict`, also after JSON has made lists of its tuples."""
        curve = tuple((int(step), float(value)) for step, value in values["curve"])
        return cls(**{**values, "curve": curve, "shared": tuple(values["shared"])})
