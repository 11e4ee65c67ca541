"""What a worker of a search is told to train, and what it tells back: plain values both."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from jobs.search.shared_cache import SharingKeys
from jobs.train.request import AdapterRequest


@dataclass(frozen=True)
class TrialTask:
    """One trial for one worker. Crosses processes by pickle."""

    request: AdapterRequest
    search: str
    """The search's run id, below which lies what trials share."""
    metric: str
    """What an evaluation calls the search's metric."""
    keys: SharingKeys
    available: frozenset[str] = frozenset()
    """What was there already when the trial began: all its workers must think alike."""


@dataclass(frozen=True)
class TrialReport:
    """An evaluation on the way, or the end."""

    step: int
    metrics: dict[str, float]
    tokens: int
    ended: bool = False
    failure: str = ""
    """Why, where it failed in a way that would repeat."""
    worker_unusable: bool = False
    """Whether its workers had better train nothing more."""

    def to_result(self) -> dict[str, Any]:
        """For Tune, whose results are flat dictionaries."""
        return {
            **self.metrics,
            "step": self.step,
            "tokens": self.tokens,
            "ended": self.ended,
            "failed": self.failure,
        }


def reject_nonfinite_metric(report: TrialReport, metric: str) -> TrialReport:
    """The same, or the trial's end: a metric that is no number would be ranked anywhere."""
    value = report.metrics.get(metric, 0.0)
    if math.isfinite(value):
        return report
    failure = f"its {metric} became {value} at step {report.step}"
    return replace(report, metrics={}, ended=True, failure=failure)
