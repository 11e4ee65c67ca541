"""Which trials are best: by the metric alone, and on the Pareto front over quality and cost."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Literal

from jobs.search.rows import Row

Mode = Literal["min", "max"]
COSTS = ("trainable_share", "node_bytes", "adapter_bytes")
"""The fields of a row that are better when smaller."""


def judged(rows: Sequence[Row]) -> list[Row]:
    """The trials that came to a result which can be compared: ended well, with a finite metric."""
    return [row for row in rows if row.status in ("done", "stopped") and has_metric(row)]


def has_metric(row: Row) -> bool:
    """Whether it reported a number; a loss that became nan is none."""
    return row.metric is not None and isfinite(row.metric)


def best(rows: Sequence[Row], mode: Mode) -> Row | None:
    """The trial of the best metric among those that trained to their end; the earlier of two."""
    whole = [row for row in judged(rows) if row.status == "done"]
    return min(whole, key=lambda row: (_loss(row, mode), row.number), default=None)


def front(rows: Sequence[Row], mode: Mode) -> list[int]:
    """The numbers of the trials that no other one beats or equals everywhere and beats somewhere.

    A trial that misses one of the costs can't be compared and is left out.
    """
    points = {row.number: _point(row, mode) for row in judged(rows) if _priced(row)}
    return [
        number
        for number, point in sorted(points.items())
        if not any(_dominates(other, point) for other in points.values())
    ]


def _priced(row: Row) -> bool:
    return all(getattr(row, cost) is not None for cost in COSTS)


def _point(row: Row, mode: Mode) -> tuple[float, ...]:
    return (_loss(row, mode), *(float(getattr(row, cost)) for cost in COSTS))


def _loss(row: Row, mode: Mode) -> float:
    assert row.metric is not None, "only judged rows are compared"
    return row.metric if mode == "min" else -row.metric


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(mine <= theirs for mine, theirs in zip(a, b, strict=True))
