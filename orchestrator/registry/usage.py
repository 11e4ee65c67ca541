"""Query the usage of projects, and which runs are ready, blocked or to be stopped."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from orchestrator.registry.db_clock import now
from orchestrator.registry.lifecycle import FINAL, Status
from orchestrator.registry.runs import STATUSES_WITHOUT_JOB
from orchestrator.registry.tables import AttemptRow, FiringRow, ProjectRow, RunRow
from orchestrator.registry.values import Project, Run, make_run, make_value

DAY_S = 86400.0


def lock_projects(session: Session) -> None:
    """Lock all projects until the transaction ends, so that only one dispatcher counts at a time.

    The lock does not block foreign keys to a project: submissions continue, and a transaction that
    submits to several projects in any order cannot deadlock with this one.
    """
    query = select(ProjectRow.name).order_by(ProjectRow.name)
    session.execute(query.with_for_update(key_share=True)).all()


def load_projects(session: Session) -> dict[str, Project]:
    """Load all projects by name."""
    return {row.name: make_value(Project, row) for row in session.scalars(select(ProjectRow))}


def count_active(session: Session) -> dict[str, tuple[int, int]]:
    """Count active runs and their workers by project."""
    inactive = [status.value for status in STATUSES_WITHOUT_JOB]
    query = (
        select(RunRow.project, func.count(), func.sum(RunRow.workers))
        .where(RunRow.status.not_in(inactive))
        .group_by(RunRow.project)
    )
    return {project: (runs, workers) for project, runs, workers in session.execute(query)}


def count_tokens_today(session: Session) -> dict[str, int]:
    """Sum the tokens of runs that were first submitted within 24 hours, by project."""
    query = (
        select(RunRow.project, func.sum(RunRow.tokens))
        .join(AttemptRow, (AttemptRow.run == RunRow.id) & (AttemptRow.number == 1))
        .where(AttemptRow.created_at > now() - DAY_S)
        .group_by(RunRow.project)
    )
    return {project: tokens or 0 for project, tokens in session.execute(query)}


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
    """Find the planned runs whose schedule has an earlier run that has not ended."""
    own_firing, earlier_firing = aliased(FiringRow), aliased(FiringRow)
    planned, earlier_run = aliased(RunRow), aliased(RunRow)
    over = [status.value for status in FINAL]
    query = (
        select(planned.id)
        .join(own_firing, own_firing.run == planned.id)
        .join(
            earlier_firing,
            (earlier_firing.schedule == own_firing.schedule)
            & (earlier_firing.due_at < own_firing.due_at),
        )
        .join(earlier_run, earlier_run.id == earlier_firing.run)
        .where(planned.status == Status.PLANNED.value, planned.cluster == cluster)
        .where(earlier_run.status.not_in(over))
    )
    return set(session.scalars(query))
