"""Order the queue by priority, the usage of projects and age, within the projects' limits.

These are pure functions from lists of runs to decisions with reasons.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.registry.values import Project, Run


@dataclass(frozen=True)
class ProjectUsage:
    """The active runs and workers of a project, and the tokens that it used today."""

    runs: int = 0
    workers: int = 0
    tokens: int = 0

    def add_run(self, run: Run) -> ProjectUsage:
        """Return the usage with one more active run."""
        return ProjectUsage(
            self.runs + 1, self.workers + run.workers, self.tokens + (run.tokens or 0)
        )


@dataclass(frozen=True)
class QueueDecision:
    """The decision about one planned run: start, wait or reject."""

    run: Run
    wait_reason: str = ""
    """Why it cannot start now; empty if it can."""
    rejection: str = ""
    """Why it can never start under the current limits."""


@dataclass
class UsageTracker:
    """The usage of every project, updated while runs are selected."""

    usage: dict[str, ProjectUsage] = field(default_factory=dict)

    def get_usage(self, project: str) -> ProjectUsage:
        """Return the usage of a project."""
        return self.usage.get(project, ProjectUsage())

    def add_run(self, run: Run) -> None:
        """Count one more active run of its project."""
        self.usage[run.project] = self.get_usage(run.project).add_run(run)


def plan_queue(
    planned: Sequence[Run],
    tracker: UsageTracker,
    projects: Mapping[str, Project],
    free_slots: int,
    blocked: Mapping[str, str],
) -> Iterable[QueueDecision]:
    """Yield a decision for each planned run, in the order in which they are considered.

    `free_slots` are the jobs that the cluster may still take, `blocked` the wait reasons of runs
    that must wait in any case. The order is computed again after each start: a project that just
    started a run comes after those that use less.
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
            run, wait_reason=f"cluster {run.cluster} is at its limit of active runs (max_runs)"
        )
    return QueueDecision(run, wait_reason=wait_reason)


def _check_limits(run: Run, usage: ProjectUsage, project: Project | None) -> tuple[str, str]:
    """Return why the run can never start under its project's limits, and why it cannot now."""
    if project is None:
        return "", ""
    limits = (
        (1, usage.runs, project.max_runs, "runs at once"),
        (run.workers, usage.workers, project.max_workers, "workers at once"),
        (run.tokens or 0, usage.tokens, project.max_tokens_a_day, "tokens in 24 hours"),
    )
    for needed, _, limit, unit in limits:
        if limit is not None and needed > limit:
            return (
                f"the run needs {needed:,} {unit}; the limit of project {run.project} is {limit:,}",
                "",
            )
    for needed, used, limit, unit in limits:
        if limit is not None and used + needed > limit:
            return "", f"project {run.project} uses {used:,} of its {limit:,} {unit}"
    return "", ""
