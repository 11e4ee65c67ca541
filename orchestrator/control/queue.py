"""Order the queue by priority, the usage of projects and age, within the projects' limits.

These are pure functions from lists of runs to decisions with reasons.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.registry.tenancy.quotas import describe_full_store, list_excesses
from orchestrator.registry.usage import ProjectUsage
from orchestrator.registry.values import Project, Run


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
    that must wait in any case.
    """
    for run in _order_runs(planned, tracker):
        decision = _decide_run(run, tracker, projects.get(run.project), free_slots, blocked)
        if not decision.wait_reason and not decision.rejection:
            tracker.add_run(run)
            free_slots -= 1
        yield decision


def _order_runs(planned: Iterable[Run], tracker: UsageTracker) -> Iterator[Run]:
    """Yield runs by priority, the usage of their project as `tracker` has it then, and age.

    A start changes the usage of one project and with it the keys of its runs alone, which keep
    their order among each other. So the heap holds the first run of each project.
    """
    queues = defaultdict[str, deque[Run]](deque)
    for run in sorted(planned, key=_make_age_key):
        queues[run.project].append(run)
    heads = [_make_head_key(runs[0], tracker) for runs in queues.values()]
    heapq.heapify(heads)
    while heads:
        project = heapq.heappop(heads)[-1]
        yield queues[project].popleft()
        if queues[project]:
            heapq.heappush(heads, _make_head_key(queues[project][0], tracker))


def _make_age_key(run: Run) -> tuple[int, float, str]:
    return (-run.priority, run.created_at, run.id)


def _make_head_key(run: Run, tracker: UsageTracker) -> tuple[int, int, float, str, str]:
    weight = tracker.get_usage(run.project).weight
    return (-run.priority, weight, run.created_at, run.id, run.project)


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
    if excesses := list_excesses(project, run):
        return excesses[0][1], ""
    if full_store := describe_full_store(project, usage.stored_bytes):
        return "", f"{full_store}; delete adapters, or ask for a higher limit"
    for needed, used, limit, unit in (
        (1, usage.runs, project.max_runs, "runs at once"),
        (run.workers, usage.workers, project.max_workers, "workers at once"),
        (run.cpus, usage.cpus, project.max_cpus, "CPUs at once"),
        (run.gpus, usage.gpus, project.max_gpus, "GPUs at once"),
        (run.tokens or 0, usage.tokens, project.max_tokens_a_day, "tokens in 24 hours"),
    ):
        if limit is not None and used + needed > limit:
            return "", f"project {run.project} uses {used:,} of its {limit:,} {unit}"
    return "", ""
