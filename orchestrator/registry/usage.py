"""What projects use now and have used of their day, and which runs wait for others."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from orchestrator.registry.clock import now
from orchestrator.registry.lifecycle import FINAL, Status
from orchestrator.registry.models import AttemptRow, FiringRow, ProjectRow, RunRow
from orchestrator.registry.runs import NO_JOB
from orchestrator.registry.values import Project, Run, run_of, value_of

DAY_S = 86400.0


def lock_projects(session: Session) -> None:
    """Holds all projects until the transaction ends: two that count wait for each other.

    Not from those who only refer to one: a submission goes on, and submissions of several projects
    in one transaction, in an order of their own, can't wait for this one in a circle.
    """
    asked = select(ProjectRow.name).order_by(ProjectRow.name)
    session.execute(asked.with_for_update(key_share=True)).all()


def projects(session: Session) -> dict[str, Project]:
    """All projects by name."""
    return {row.name: value_of(Project, row) for row in session.scalars(select(ProjectRow))}


def at_once(session: Session) -> dict[str, tuple[int, int]]:
    """Runs and workers at work, by project."""
    through = [status.value for status in NO_JOB]
    asked = (
        select(RunRow.project, func.count(), func.sum(RunRow.workers))
        .where(RunRow.status.not_in(through))
        .group_by(RunRow.project)
    )
    return {project: (runs, workers) for project, runs, workers in session.execute(asked)}


def tokens_today(session: Session) -> dict[str, int]:
    """The tokens of runs first submitted within 24 hours, by project."""
    asked = (
        select(RunRow.project, func.sum(RunRow.tokens))
        .join(AttemptRow, (AttemptRow.run == RunRow.id) & (AttemptRow.number == 1))
        .where(AttemptRow.created_at > now() - DAY_S)
        .group_by(RunRow.project)
    )
    return {project: tokens or 0 for project, tokens in session.execute(asked)}


def busy(session: Session, cluster: str) -> int:
    """Runs that the cluster has, or is about to have: those whose job nobody knows to be over."""
    through = [status.value for status in (*NO_JOB, Status.LOST)]
    asked = select(func.count()).where(RunRow.cluster == cluster, RunRow.status.not_in(through))
    return session.scalar(asked) or 0


def ready(session: Session, cluster: str, *, each: int = 200) -> list[Run]:
    """Planned runs of a cluster whose wait is over, the most urgent first.

    At most so many of `each` project: one that asks for thousands hides no other's.
    """
    order = (RunRow.priority.desc(), RunRow.created_at, RunRow.id)
    place = func.row_number().over(partition_by=RunRow.project, order_by=order)
    ranked = (
        select(RunRow.id, place.label("place"))
        .where(RunRow.status == Status.PLANNED.value, RunRow.cluster == cluster)
        .where((RunRow.not_before.is_(None)) | (RunRow.not_before <= now()))
        .subquery()
    )
    asked = select(RunRow).join(ranked, ranked.c.id == RunRow.id).where(ranked.c.place <= each)
    return [run_of(row) for row in session.scalars(asked.order_by(*order))]


def unwanted(session: Session, cluster: str) -> list[Run]:
    """Planned runs that somebody asked to stop, whether or not their wait is over."""
    asked = select(RunRow).where(RunRow.status == Status.PLANNED.value, RunRow.cluster == cluster)
    return [run_of(row) for row in session.scalars(asked.where(RunRow.stop.is_not(None)))]


def behind_another_firing(session: Session, cluster: str) -> set[str]:
    """Planned runs whose schedule has an earlier run that is not over."""
    mine, other = aliased(FiringRow), aliased(FiringRow)
    planned, earlier = aliased(RunRow), aliased(RunRow)
    over = [status.value for status in FINAL]
    asked = (
        select(planned.id)
        .join(mine, mine.run == planned.id)
        .join(other, (other.schedule == mine.schedule) & (other.due_at < mine.due_at))
        .join(earlier, earlier.id == other.run)
        .where(planned.status == Status.PLANNED.value, planned.cluster == cluster)
        .where(earlier.status.not_in(over))
    )
    return set(session.scalars(asked))
