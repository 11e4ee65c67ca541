"""The `retrain` section: where the training starts, and the gate that its adapter must pass."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.spec.limits import NonNegative, Real
from jobs.spec.metrics import METRICS, Metric
from jobs.spec.strict_model import StrictModel

START_PATTERN = r"^(?:current|scratch|v[1-9][0-9]{0,8})$"
SCRATCH, CURRENT = "scratch", "current"


class GateSection(StrictModel):
    """Conditions for promoting a new adapter. A metric that is NaN fails all of them."""

    metric: Metric = "eval_loss"
    baseline: Literal["current", "none"] = "current"
    """The adapter to compare with: the one that is current when the run starts, or none."""
    better_by: Real = 0.0
    """Required improvement on data.eval, in the metric's unit. 0 accepts an equal adapter; a
    negative number accepts a worse one."""
    target: Real | None = None
    """Value of the metric on data.eval that must be reached, whatever the baseline scores."""
    tolerance: NonNegative | None = 0.05
    """Relative loss that is accepted on the rows by which the baseline was evaluated when it was
    trained; null skips those rows."""
    missing_rows: Literal["ignore", "refuse"] = "ignore"
    """If those rows no longer exist: skip the comparison, or refuse the adapter."""

    @property
    def evaluation_key(self) -> str:
        """Return the metric's name in an evaluation."""
        return METRICS[self.metric][0]

    @property
    def lower_is_better(self) -> bool:
        """Return whether the metric is to be minimised."""
        return METRICS[self.metric][1] == "min"


class RetrainSection(StrictModel):
    """Retraining: train on new rows, evaluate, and promote the adapter if it passes the gate."""

    start: str = Field(default=CURRENT, pattern=START_PATTERN)
    """current | scratch | v3: the adapter from which the training starts. A name without versions
    starts from scratch."""
    gate: GateSection = GateSection()
    promote: bool = True
    """Promote an adapter that passes the gate automatically."""
