"""Select the best trial by the metric, and the Pareto front over the metric and the costs."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Literal

from jobs.search.trial_record import TrialRecord

Mode = Literal["min", "max"]
COSTS = ("trainable_share", "node_bytes", "adapter_bytes")
"""Fields of a record that are better when smaller."""


def select_comparable(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials with a result to compare: done or stopped, with a finite metric."""
    return [
        record for record in records if record.status in ("done", "stopped") and has_metric(record)
    ]


def has_metric(record: TrialRecord) -> bool:
    """Return whether the trial has a finite metric."""
    return record.metric is not None and isfinite(record.metric)


def find_best(records: Sequence[TrialRecord], mode: Mode) -> TrialRecord | None:
    """Return the trial with the best metric among the completed ones; of equals the first."""
    completed = [record for record in select_comparable(records) if record.status == "done"]
    return min(
        completed, key=lambda record: (_compute_loss(record, mode), record.number), default=None
    )


def find_front(records: Sequence[TrialRecord], mode: Mode) -> list[int]:
    """Return the numbers of the trials that no other trial dominates.

    A trial with an unknown cost can't be compared and is excluded.
    """
    points = {
        record.number: _make_point(record, mode)
        for record in select_comparable(records)
        if _has_costs(record)
    }
    return [
        number
        for number, point in sorted(points.items())
        if not any(_does_dominate(other, point) for other in points.values())
    ]


def _has_costs(record: TrialRecord) -> bool:
    return all(getattr(record, cost) is not None for cost in COSTS)


def _make_point(record: TrialRecord, mode: Mode) -> tuple[float, ...]:
    return (_compute_loss(record, mode), *(float(getattr(record, cost)) for cost in COSTS))


def _compute_loss(record: TrialRecord, mode: Mode) -> float:
    assert record.metric is not None, "only comparable trials have a loss"
    return record.metric if mode == "min" else -record.metric


def _does_dominate(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(own <= other for own, other in zip(a, b, strict=True))
