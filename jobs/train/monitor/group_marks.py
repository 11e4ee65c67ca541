"""Marks of a worker group's start: when Ray began to start it, and when its resources were ready.

Only Ray Train's controller knows them. They are left in each worker's process, where rank 0 records
them as phases of the run's start.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.placement_group import placement_group_table

from jobs.train.monitor.phases import EventJournal, PhaseClock, PhaseStart


@dataclass(frozen=True)
class GroupMarks:
    """The marks of one start of the workers."""

    launch: int
    """0, and more after workers were lost."""
    started: float
    """When Ray began to start the group, in seconds since 1970 of the driver's clock."""
    placed: float
    """When the placement group was ready."""


class _ProcessMarks:
    """The marks of the group that this process belongs to."""

    marks: GroupMarks | None = None


class GroupMarksCallback(WorkerGroupCallback):  # type: ignore[misc]  # Ray is untyped
    """Tells the workers of each group the marks of its start; lives in Ray Train's controller."""

    def __init__(self) -> None:
        self._launches, self._started = 0, 0.0

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Remember when the start began."""
        self._started = time.time()

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Leave the marks in every worker's process."""
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        placed = self._started + _read_placement_s(group)
        worker_group.execute(_leave_marks, GroupMarks(self._launches, self._started, placed))
        self._launches += 1


def begin_worker_phases(journal: EventJournal, start: PhaseStart) -> PhaseStart:
    """Record the phases before this worker's function was called, and return where the next begins.

    Workers that replace lost ones have a start of their own.
    """
    marks = _ProcessMarks.marks
    if marks is not None and marks.launch:
        start = PhaseStart.begin(start.attempt, marks.started)
    clock = PhaseClock(journal, start)
    if marks is not None:
        clock.end("placement", marks.placed)
    clock.end("processes")
    return clock.start


def _leave_marks(marks: GroupMarks) -> None:
    _ProcessMarks.marks = marks


def _read_placement_s(group: Any) -> float:
    """Return the seconds from a placement group's request to its readiness, as Ray measured it."""
    stats = placement_group_table(group).get("stats", {})
    return float(stats.get("end_to_end_creation_latency_ms", 0.0)) / 1000
