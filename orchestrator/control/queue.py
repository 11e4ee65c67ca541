"""Who is next: priority first, then whose project uses least, then the oldest; within the limits.

Pure: the lists come in, an order and reasons come out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.registry.values import Project, Run


@dataclass(frozen=True)
class ProjectUsage:
    """What a project uses now, and has used of its day."""

    runs: int = 0
    workers: int = 0
    tokens: int = 0

    def add_run(self, run: Run) -> ProjectUsage:
        """The same with one more run at work."""
        return ProjectUsage(
            self.runs + 1, self.workers + run.workers, self.tokens + (run.tokens or 0)
        )


@dataclass(frozen=True)
class QueueDecision:
    """What was decided about one planned run."""

    run: Run
    wait_reason: str = ""
    """Why not now; empty: now."""
    rejection: str = ""
    """Why not ever, under the limits as they are."""


@dataclass
class UsageTracker:
    """The usage of every project, kept while turns are given out."""

    usage: dict[str, ProjectUsage] = field(default_factory=dict)

    def get_usage(self, project: str) -> ProjectUsage:
        """What the project uses."""
        return self.usage.get(project, ProjectUsage())

    def add_run(self, run: Run) -> None:
        """One more run of its project is at work."""
        self.usage[run.project] = self.get_usage(run.project).add_run(run)


def plan_queue(
    planned: Sequence[Run],
    tracker: UsageTracker,
    projects: Mapping[str, Project],
    free_slots: int,
    blocked: Mapping[str, str],
) -> Iterable[QueueDecision]:
    """A turn for each planned run, in the order in which they are served.

    `room`: jobs that the cluster may have still.
    `held`: runs that must wait whatever the room, and why. After each turn the order is looked at
    anew: a project that just got a run stands behind those that use less.
    """
    remaining = _sort_runs(planned, tracker)
    while remaining:
        run = remaining.popleft()
        decision = _decide_run(run, tracker, projects.get(run.project), free_slots, blocked)
        if not decision.wait_reason and not decision.rejection:
            tracker.add_run(run)
            free_slots -= 1
            remaining = _sort_runs(remaining, tracker)
        yield decision


def _sort_runs(runs: Iterable[Run], tracker: UsageTracker) -> deque[Run]:
    return deque(sorted(runs, key=lambda run: _make_sort_key(run, tracker)))


def _make_sort_key(run: Run, tracker: UsageTracker) -> tuple[int, int, float, str]:
    return (-run.priority, tracker.get_usage(run.project).workers, run.created_at, run.id)


def _decide_run(
    run: Run,
    tracker: UsageTracker,
    project: Project | None,
    free_slots: int,
    blocked: Mapping[str, str],
) -> QueueDecision:
    rejection, wait_reason = _check_limits(run, tracker.get_usage(run.project), project)
    if rejection:
        return QueueDecision(run, rejection=rejection)
    if run.id in blocked:
        return QueueDecision(run, wait_reason=blocked[run.id])
    if free_slots <= 0:
        return QueueDecision(
            run, wait_reason=f"cluster {run.cluster} has as many runs as it may have"
        )
    return QueueDecision(run, wait_reason=wait_reason)


def _check_limits(run: Run, usage: ProjectUsage, project: Project | None) -> tuple[str, str]:
    """Why the run can never start under its project's limits, and why it can't now."""
    if project is None:
        return "", ""
    limits = (
        (1, usage.runs, project.max_runs, "runs at once"),
        (run.workers, usage.workers, project.max_workers, "workers at once"),
        (run.tokens or 0, usage.tokens, project.max_tokens_a_day, "tokens in 24 hours"),
    )
    for needed, _, limit, unit in limits:
        if limit is not None and needed > limit:
            return f"it needs {needed:,} {unit}, project {run.project} may use {limit:,}", ""
    for needed, used, limit, unit in limits:
        if limit is not None and used + needed > limit:
            return "", f"project {run.project} uses {used:,} of its {limit:,} {unit}"
    return "", ""
