"""Decide which schedule fires next: projects take turns, within a budget for each tick."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from orchestrator.registry.schedules import DueSchedule


@dataclass(frozen=True)
class FiringBudget:
    """The most that one tick may do; what is still due is fired by the next one."""

    firings: int = 100
    seconds: float = 5.0


class FiringOrder:
    """The turns of projects. It remembers across ticks whose turn was the longest ago."""

    def __init__(
        self,
        budget: FiringBudget | None = None,
        *,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget, self._timer = budget or FiringBudget(), timer
        self._turns = 0
        self._last_turns: dict[str, int] = {}
        self._fired: dict[str, int] = {}
        """Firings of each project in this tick."""

    def iterate_due(self, due: Iterable[DueSchedule]) -> Iterator[DueSchedule]:
        """Yield schedules until the budget is spent, of the project with the least firings first.

        Among equals comes the project whose last turn was the longest ago, then the one whose
        schedule has been due for longest. The schedules of a project keep their order.
        """
        queues = defaultdict[str, deque[DueSchedule]](deque)
        for schedule in due:
            queues[schedule.project].append(schedule)
        self._fired = {}
        deadline = self._timer() + self._budget.seconds
        while queues and self._timer() < deadline:
            if sum(self._fired.values()) >= self._budget.firings:
                break
            project = min(queues, key=lambda name: self._make_key(name, queues[name][0]))
            schedule = queues[project].popleft()
            if not queues[project]:
                del queues[project]
            self._turns += 1
            self._last_turns[project] = self._turns
            yield schedule

    def count_firings(self, project: str, count: int) -> None:
        """Count firings of a project in this tick."""
        self._fired[project] = self._fired.get(project, 0) + count

    def _make_key(self, project: str, schedule: DueSchedule) -> tuple[int, int, float]:
        return (
            self._fired.get(project, 0),
            self._last_turns.get(project, 0),
            schedule.next_at,
        )
