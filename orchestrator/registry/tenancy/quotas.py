"""Check the quotas of a project in the transaction that adds a run or a schedule.

A project with such a quota is locked first, so that two submissions cannot both be the last one.
The lock does not block foreign keys: a project without quotas is never locked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.errors import Fault
from orchestrator.registry.errors import QuotaExceeded
from orchestrator.registry.lifecycle import FINAL, Status
from orchestrator.registry.tables import AdapterRow, ProjectRow, RunRow, ScheduleRow
from orchestrator.registry.values import Project, make_value

UNFINISHED = sorted(status.value for status in Status if status not in FINAL)
"""Statuses of runs that have not ended."""
COUNTED_AT_INTAKE = ("max_queued", "max_stored_bytes")
"""Limits whose check at intake needs a count of rows."""


class Needs(Protocol):
    """What a run takes of its project: a request, or the row that was made of it."""

    @property
    def workers(self) -> int: ...
    @property
    def cpus(self) -> int: ...
    @property
    def gpus(self) -> int: ...
    @property
    def tokens(self) -> int | None: ...


def check_run(session: Session, project: Project, priority: int, needs: Needs) -> None:
    """Raise QuotaExceeded with all reasons why the project may not add this run."""
    project = _lock_project(session, project, COUNTED_AT_INTAKE)
    faults = [
        *_check_priority(project, priority),
        *_check_needs(project, needs),
        *_check_counts(session, project),
    ]
    if faults:
        raise QuotaExceeded(faults)


def check_early(session: Session, name: str, priority: int) -> None:
    """Raise QuotaExceeded if a submission is refused whatever it needs.

    This lets intake write nothing for it. Only the check in the transaction is binding.
    """
    row = session.scalar(select(ProjectRow).where(ProjectRow.name == name))
    if row is not None:
        project = make_value(Project, row)
        if faults := [*_check_priority(project, priority), *_check_counts(session, project)]:
            raise QuotaExceeded(faults)


def check_new_schedule(session: Session, project: Project, priority: int) -> None:
    """Raise QuotaExceeded if the project may not add a schedule of this priority."""
    project = _lock_project(session, project, ("max_schedules",))
    faults = list(_check_priority(project, priority))
    limit = project.max_schedules
    if limit is not None and (count := count_schedules(session, project.name)) >= limit:
        problem = f"project {project.name} has {count:,} of its {limit:,} schedules"
        remedy = f"Delete one with `slora schedules remove`, or {_ask(project, 'max_schedules')}."
        faults.append(Fault("max_schedules", problem, remedy))
    if faults:
        raise QuotaExceeded(faults)


def check_priority(project: Project, priority: int) -> None:
    """Raise QuotaExceeded if the priority is above the project's limit."""
    if faults := list(_check_priority(project, priority)):
        raise QuotaExceeded(faults)


def list_excesses(project: Project, needs: Needs) -> list[tuple[str, str]]:
    """List the limits that the run alone exceeds, and how: it can never start under them."""
    return [
        (key, f"the run needs {needed:,} {unit}; the limit of project {project.name} is {limit:,}")
        for key, needed, limit, unit in (
            ("max_runs", 1, project.max_runs, "runs at once"),
            ("max_workers", needs.workers, project.max_workers, "workers at once"),
            ("max_cpus", needs.cpus, project.max_cpus, "CPUs at once"),
            ("max_gpus", needs.gpus, project.max_gpus, "GPUs at once"),
            ("max_tokens_a_day", needs.tokens or 0, project.max_tokens_a_day, "tokens in 24 hours"),
        )
        if limit is not None and needed > limit
    ]


def describe_full_store(project: Project, stored_bytes: int) -> str:
    """Describe why the project may not store more adapters; empty if it may."""
    limit = project.max_stored_bytes
    if limit is None or stored_bytes < limit:
        return ""
    return f"project {project.name} stores {stored_bytes:,} of its {limit:,} bytes of adapters"


def count_unfinished(session: Session, project: str) -> int:
    """Count the runs of a project that have not ended."""
    query = select(func.count()).where(RunRow.project == project, RunRow.status.in_(UNFINISHED))
    return session.scalar(query) or 0


def count_schedules(session: Session, project: str) -> int:
    """Count the schedules of a project, paused ones included."""
    return session.scalar(select(func.count()).where(ScheduleRow.project == project)) or 0


def sum_stored_bytes(session: Session, project: str) -> int:
    """Sum the sizes of a project's adapters."""
    query = select(func.sum(AdapterRow.size)).where(AdapterRow.project == project)
    return int(session.scalar(query) or 0)


def _lock_project(session: Session, project: Project, limits: tuple[str, ...]) -> Project:
    """Lock the project if one of these limits is set, and return it as it is now."""
    if all(getattr(project, limit) is None for limit in limits):
        return project
    query = select(ProjectRow).where(ProjectRow.name == project.name)
    row = session.scalars(
        query.with_for_update(key_share=True).execution_options(populate_existing=True)
    ).one()
    return make_value(Project, row)


def _check_priority(project: Project, priority: int) -> Iterator[Fault]:
    bound = project.max_priority
    if bound is not None and priority > bound:
        problem = f"{priority} is above {bound}, the highest of project {project.name}"
        yield Fault("priority", problem, f"Use {bound} or less.")


def _check_needs(project: Project, needs: Needs) -> Iterator[Fault]:
    for key, problem in list_excesses(project, needs):
        yield Fault(key, problem, f"Use less, or {_ask(project, key)}.")


def _check_counts(session: Session, project: Project) -> Iterator[Fault]:
    limit = project.max_queued
    if limit is not None and (count := count_unfinished(session, project.name)) >= limit:
        problem = f"project {project.name} has {count:,} of its {limit:,} runs that have not ended"
        remedy = f"Wait until one ends, stop one with `slora stop`, or {_ask(project)}."
        yield Fault("max_queued", problem, remedy)
    if project.max_stored_bytes is not None:
        stored = sum_stored_bytes(session, project.name)
        if problem := describe_full_store(project, stored):
            remedy = f"Delete adapters, or {_ask(project, 'max_stored_bytes')}."
            yield Fault("max_stored_bytes", problem, remedy)


def _ask(project: Project, key: str = "max_queued") -> str:
    option = key.replace("_", "-")
    return f"ask an administrator for `slora projects set {project.name} --{option} N`"
