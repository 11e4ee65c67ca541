"""Query the usage of projects, and which runs are ready, blocked or to be stopped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Double, cast, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from orchestrator.registry.db_clock import now
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.runs import STATUSES_WITHOUT_JOB
from orchestrator.registry.tables import AdapterRow, AttemptRow, FiringRow, ProjectRow, RunRow
from orchestrator.registry.tenancy import quotas
from orchestrator.registry.values import Project, Run, make_project, make_run

DAY_S = 86400.0
CPUS_OF_A_GPU = 8
"""CPUs that a GPU counts as in the order of projects: nodes have about as many for each GPU."""


@dataclass(frozen=True)
class ProjectUsage:
    """What a project uses: its active runs, today's tokens and its stored adapters."""

    runs: int = 0
    workers: int = 0
    tokens: int = 0
    cpus: int = 0
    gpus: int = 0
    stored_bytes: int = 0

    @property
    def weight(self) -> int:
        """Return the usage as one number: a project with a smaller one is served first."""
        return max(self.workers, self.cpus) + CPUS_OF_A_GPU * self.gpus

    def add_run(self, run: Run) -> ProjectUsage:
        """Return the usage with one more active run."""
        return replace(
            self,
            runs=self.runs + 1,
            workers=self.workers + run.workers,
            tokens=self.tokens + (run.tokens or 0),
            cpus=self.cpus + run.cpus,
            gpus=self.gpus + run.gpus,
        )


def lock_projects(session: Session) -> None:
    """Lock all projects until the transaction ends, so that only one dispatcher counts at a time.

    The lock does not block foreign keys to a project: submissions continue, and a transaction that
    submits to several projects in any order cannot deadlock with this one.
    """
    query = select(ProjectRow.name).order_by(ProjectRow.name)
    session.execute(query.with_for_update(key_share=True)).all()


def load_projects(session: Session) -> dict[str, Project]:
    """Load all projects by name."""
    return {row.name: make_project(row) for row in session.scalars(select(ProjectRow))}


def measure_usage(session: Session, *, project: str | None = None) -> dict[str, ProjectUsage]:
    """Measure what all projects use, or one of them; a project that uses nothing is absent."""
    active = _sum_active(session, project)
    tokens = _sum_tokens_today(session, project)
    stored = _sum_stored_bytes(session, project)
    return {
        name: replace(
            active.get(name, ProjectUsage()),
            tokens=tokens.get(name, 0),
            stored_bytes=stored.get(name, 0),
        )
        for name in {*active, *tokens, *stored}
    }


def _sum_active(session: Session, project: str | None) -> dict[str, ProjectUsage]:
    sums = (func.sum(RunRow.workers), func.sum(RunRow.cpus), func.sum(RunRow.gpus))
    active = [status.value for status in Status if status not in STATUSES_WITHOUT_JOB]
    query = (
        select(RunRow.project, func.count(), *sums)
        .where(RunRow.status.in_(active), *_belongs_to(RunRow.project, project))
        .group_by(RunRow.project)
    )
    return {
        name: ProjectUsage(runs, int(workers), cpus=int(cpus), gpus=int(gpus))
        for name, runs, workers, cpus, gpus in session.execute(query)
    }


def _sum_tokens_today(session: Session, project: str | None) -> dict[str, int]:
    """Sum the tokens of runs that were first submitted within 24 hours, by project."""
    query = (
        select(RunRow.project, func.sum(cast(RunRow.tokens, Double)))
        .join(AttemptRow, (AttemptRow.run == RunRow.id) & (AttemptRow.number == 1))
        .where(AttemptRow.created_at > now() - DAY_S, *_belongs_to(RunRow.project, project))
        .group_by(RunRow.project)
    )
    return {name: int(tokens or 0) for name, tokens in session.execute(query)}


def is_counted_today(session: Session, run: Run) -> bool:
    """Return whether the run's tokens count among those of the last 24 hours."""
    query = select(AttemptRow.number).where(
        AttemptRow.run == run.id, AttemptRow.number == 1, AttemptRow.created_at > now() - DAY_S
    )
    return session.scalar(query) is not None


def _sum_stored_bytes(session: Session, project: str | None) -> dict[str, int]:
    """Sum the sizes of adapters, by project, where the project has a limit or is named."""
    query = select(AdapterRow.project, func.sum(AdapterRow.size)).group_by(AdapterRow.project)
    if project is not None:
        query = query.where(AdapterRow.project == project)
    else:
        limited = select(ProjectRow.name).where(ProjectRow.max_stored_bytes.is_not(None))
        query = query.where(AdapterRow.project.in_(limited))
    return {name: int(size or 0) for name, size in session.execute(query)}


def _belongs_to(column: InstrumentedAttribute[str], project: str | None) -> list[Any]:
    return [] if project is None else [column == project]


def count_busy_runs(session: Session, cluster: str) -> int:
    """Count the runs that take a slot of the cluster: submitted, and not known to have ended."""
    inactive = [status.value for status in (*STATUSES_WITHOUT_JOB, Status.LOST)]
    query = select(func.count()).where(RunRow.cluster == cluster, RunRow.status.not_in(inactive))
    return session.scalar(query) or 0


def list_ready_runs(session: Session, cluster: str, *, per_project: int = 200) -> list[Run]:
    """List the planned runs of a cluster that may be submitted now, most urgent first.

    Return at most `per_project` of each project, so that thousands of one do not hide the others.
    """
    order = (RunRow.priority.desc(), RunRow.created_at, RunRow.id)
    position = func.row_number().over(partition_by=RunRow.project, order_by=order)
    ranked = (
        select(RunRow.id, position.label("position"))
        .where(RunRow.status == Status.PLANNED.value, RunRow.cluster == cluster)
        .where((RunRow.not_before.is_(None)) | (RunRow.not_before <= now()))
        .subquery()
    )
    query = (
        select(RunRow)
        .join(ranked, ranked.c.id == RunRow.id)
        .where(ranked.c.position <= per_project)
    )
    return [make_run(row) for row in session.scalars(query.order_by(*order))]


def list_runs_to_stop(session: Session, cluster: str) -> list[Run]:
    """List the planned runs with a stop request, including those that wait for a retry."""
    query = select(RunRow).where(RunRow.status == Status.PLANNED.value, RunRow.cluster == cluster)
    return [make_run(row) for row in session.scalars(query.where(RunRow.stop.is_not(None)))]


def find_runs_behind_firing(session: Session, cluster: str) -> set[str]:
    """Find the planned runs whose schedule has an earlier run that has not ended.

    Each run is compared with the first one of its schedule, not with all: a schedule may have
    thousands.
    """
    firing = aliased(FiringRow)
    first = (
        select(firing.schedule, func.min(firing.due_at).label("due_at"))
        .join(RunRow, RunRow.id == firing.run)
        .where(RunRow.status.in_(quotas.UNFINISHED))
        .group_by(firing.schedule)
        .subquery()
    )
    planned = aliased(RunRow)
    query = (
        select(planned.id)
        .join(FiringRow, FiringRow.run == planned.id)
        .join(first, first.c.schedule == FiringRow.schedule)
        .where(planned.status == Status.PLANNED.value, planned.cluster == cluster)
        .where(FiringRow.due_at > first.c.due_at)
    )
    return set(session.scalars(query))
