"""The `retrain:` section of a spec: where the training starts, and what its adapter must reach."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.spec.metrics import METRICS, Metric
from jobs.spec.schema import StrictModel

START_PATTERN = r"^(?:current|scratch|v[1-9][0-9]{0,8})$"


class GateSection(StrictModel):
    """What a new adapter must reach before the bare name means it. NaN reaches nothing."""

    metric: Metric = "eval_loss"
    baseline: Literal["current", "none"] = "current"
    """What it is compared with: the adapter that the bare name means when the retraining looks for
    new rows, or nothing."""
    better_by: float = 0.0
    """On data.eval, in the metric's own unit. 0 lets an equal one pass; below 0, a worse one."""
    target: float | None = None
    """A value of the metric on data.eval that has to be reached, whatever the baseline has."""
    tolerance: float | None = Field(default=0.05, ge=0)
    """The share by which it may be worse than the baseline on the rows that the baseline was judged
    by when it was trained; null: they are not looked at."""
    missing_rows: Literal["ignore", "refuse"] = "ignore"
    """Where those rows are not there any more: pass over them, or let nothing pass."""

    @property
    def evaluation_key(self) -> str:
        """What an evaluation calls the metric."""
        return METRICS[self.metric][0]

    @property
    def lower_is_better(self) -> bool:
        """Whether less of it is better."""
        return METRICS[self.metric][1] == "min"


class RetrainSection(StrictModel):
    """New rows are looked for, learnt, judged, and what passes the gate is promoted."""

    start: str = Field(default="current", pattern=START_PATTERN)
    """current | scratch | v3: the adapter that the training goes on from. A name without any
    version starts from scratch."""
    gate: GateSection = GateSection()
    promote: bool = True
    """Whether an adapter that passes takes over by itself."""
