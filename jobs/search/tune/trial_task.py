"""Messages between the driver of a search and its workers: a task inward, reports outward."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.search.shared_cache import SharingKeys
from jobs.train.request import AdapterRequest

TASK_KEY = "task"
"""The one key of Tune's config: the TrialTask, pickled by Ray."""


@dataclass(frozen=True)
class TrialTask:
    """A trial to run. It crosses processes by pickle."""

    number: int
    config: Mapping[str, Any]
    """The searched keys and their values."""
    request: AdapterRequest
    search: str
    """The run id of the search, whose folder holds what trials share."""
    metric: str
    """The name of the search's metric in an evaluation."""
    keys: SharingKeys
    donor: int | None = None
    """The trial whose state this one continues from (PBT)."""
    available: frozenset[str] = frozenset()
    """Shared results that exist when the trial starts; all its workers must agree on them."""


@dataclass(frozen=True)
class TrialReport:
    """An evaluation during a trial, or its end."""

    step: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0
    """Tokens that the trial has trained on itself."""
    ended: bool = False
    failure: str = ""
    """The reason of a failure that would repeat."""
    worker_unusable: bool = False
    """Whether its workers must not train another trial."""
    reused: tuple[str, ...] = ()
    """Results of other trials that this one has used."""


def reject_nonfinite_metric(report: TrialReport, metric: str) -> TrialReport:
    """Return the report, or the trial's failure if the metric is not finite: no rank fits it."""
    value = report.metrics.get(metric, 0.0)
    if math.isfinite(value):
        return report
    failure = f"its {metric} became {value} at step {report.step}"
    return replace(report, metrics={}, ended=True, failure=failure)
