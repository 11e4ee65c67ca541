"""Schedules and their firings. A due time fires at most once: its row has a unique key.

Knows no cron: when the next moment is, its caller says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import func, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jobs.spec.kinds import Kind
from jobs.spec.limits import JitterSeconds, Priority
from jobs.spec.strict_model import StrictModel
from jobs.store.adapters.manifest import Digest, Name
from orchestrator.registry import leases, projects
from orchestrator.registry.db_clock import now
from orchestrator.registry.errors import DuplicateKey, LostUpdate, UnknownItem
from orchestrator.registry.leases import Lease
from orchestrator.registry.lifecycle import FINAL
from orchestrator.registry.tables import FiringRow, RunRow, ScheduleRow
from orchestrator.registry.tenancy import quarantine, quotas
from orchestrator.registry.tenancy.audit_log import SERVICE, Actor
from orchestrator.registry.values import (
    DEFAULT_CLUSTER,
    DEFAULT_PROJECT,
    Run,
    make_run,
    make_value,
)

FiringOutcome = Literal["run", "queued", "skipped", "no_new_data", "refused", "over_quota"]


class NewSchedule(StrictModel):
    """A schedule to create."""

    name: Name
    project: Name = DEFAULT_PROJECT
    cron: str = Field(min_length=1, max_length=200, pattern=r"^[ -~]+$")
    time_zone: str = Field(default="UTC", max_length=63, pattern=r"^[A-Za-z0-9_+/-]+$")
    concurrency: Literal["skip", "queue", "replace"] = "skip"
    missed: Literal["skip", "latest", "all"] = "latest"
    jitter_s: JitterSeconds = 0.0
    spec: dict[str, Any]
    kind: Kind = "retrain"
    only_new_data: bool = False
    data_fingerprint: Digest | None = None
    cluster: Name = DEFAULT_CLUSTER
    priority: Priority = 0


@dataclass(frozen=True)
class Schedule:
    """A schedule as it was read."""

    id: int
    project: str
    name: str
    cron: str
    time_zone: str
    concurrency: str
    missed: str
    jitter_s: float
    paused: bool
    spec: Mapping[str, Any]
    next_at: float | None
    created_at: float
    revision: int
    kind: Kind
    only_new_data: bool
    data_fingerprint: str | None
    cluster: str
    priority: int
    by_token: str | None = None
    """Id of the token that made it."""
    by_label: str | None = None


@dataclass(frozen=True)
class DueSchedule:
    """What tells whose turn it is, without the spec."""

    id: int
    project: str
    name: str
    next_at: float


@dataclass(frozen=True)
class Firing:
    """The outcome of one due time."""

    schedule: int
    due_at: float
    fired_at: float
    outcome: str
    run: str | None


def add(
    session: Session, new: NewSchedule, *, next_at: float | None, by: Actor = SERVICE
) -> Schedule:
    """Add a schedule of `by` that fires next at `next_at`. Raise DuplicateKey or
    QuotaExceeded."""
    project = projects.ensure_project(session, new.project)
    quotas.check_new_schedule(session, project, new.priority)
    initial: dict[str, Any] = {
        "paused": False,
        "next_at": next_at,
        "created_at": now(),
        "revision": 1,
    }
    initial |= {"by_token": by.token, "by_label": by.label}
    try:
        with session.begin_nested():
            session.execute(insert(ScheduleRow).values({**new.model_dump(), **initial}))
    except IntegrityError as error:
        raise DuplicateKey("schedule", new.name) from error
    return get(session, new.project, new.name)


def get(session: Session, project: str, name: str) -> Schedule:
    """Read a schedule. Raise UnknownItem."""
    query = select(ScheduleRow).where(ScheduleRow.project == project, ScheduleRow.name == name)
    row = session.scalar(query.execution_options(populate_existing=True))
    if row is None:
        raise UnknownItem("schedule", name)
    return make_value(Schedule, row)


def find_due(session: Session, due: DueSchedule, *, by: float) -> Schedule | None:
    """Read a schedule; return None if it was deleted, or is not due any more."""
    row = session.get(ScheduleRow, due.id)
    if row is None or row.paused or row.next_at is None or row.next_at > by:
        return None
    return make_value(Schedule, row)


def list_due(
    session: Session, *, by: float | None = None, per_project: int = 100
) -> list[DueSchedule]:
    """List the schedules that are due, neither paused nor quarantined, longest overdue first.

    Return at most `per_project` of each project, so that hundreds of one do not hide the others.
    """
    moment = now() if by is None else by
    item = ScheduleRow.project + "/" + ScheduleRow.name
    order = (ScheduleRow.next_at, ScheduleRow.id)
    position = func.row_number().over(partition_by=ScheduleRow.project, order_by=order)
    due = (
        select(
            ScheduleRow.id,
            ScheduleRow.project,
            ScheduleRow.name,
            ScheduleRow.next_at,
            position.label("position"),
        )
        .where(
            ScheduleRow.paused.is_(False),
            ScheduleRow.next_at <= moment,
            item.not_in(quarantine.select_items("schedule")),
        )
        .subquery()
    )
    query = select(due).where(due.c.position <= per_project).order_by(due.c.next_at, due.c.id)
    return [make_value(DueSchedule, row) for row in session.execute(query)]


def update_schedule(session: Session, schedule: Schedule, **changes: Any) -> Schedule:
    """Change columns of a schedule. Raise LostUpdate."""
    row = session.scalar(
        update(ScheduleRow)
        .where(ScheduleRow.id == schedule.id, ScheduleRow.revision == schedule.revision)
        .values(**changes, revision=schedule.revision + 1)
        .returning(ScheduleRow)
        .execution_options(populate_existing=True)
    )
    if row is None:
        current = get(session, schedule.project, schedule.name)
        raise LostUpdate(f"schedule {schedule.name}", schedule.revision, current.revision)
    return make_value(Schedule, row)


def fire(
    session: Session,
    schedule: Schedule,
    *,
    due_at: float,
    next_at: float | None,
    outcome: FiringOutcome,
    run: str | None = None,
    lease: Lease | None = None,
    fired_at: float | None = None,
    data_fingerprint: str | None = None,
) -> Schedule:
    """Record that `due_at` fired, in the transaction that adds its run.

    Raise DuplicateKey if it has fired, LostUpdate if the schedule was changed meanwhile.
    """
    if lease is not None:
        leases.guard(session, lease)
    fired = now() if fired_at is None else fired_at
    values = {"schedule": schedule.id, "due_at": due_at, "fired_at": fired, "outcome": outcome}
    try:
        with session.begin_nested():
            session.execute(insert(FiringRow).values({**values, "run": run}))
    except IntegrityError as error:
        raise DuplicateKey("firing", f"{schedule.name} at {due_at:.0f}") from error
    changes = {} if data_fingerprint is None else {"data_fingerprint": data_fingerprint}
    return update_schedule(session, schedule, next_at=next_at, **changes)


def list_unfinished_runs(session: Session, schedule: Schedule) -> list[Run]:
    """List the runs of its firings that have not ended, oldest first."""
    final = [status.value for status in FINAL]
    query = (
        select(RunRow)
        .join(FiringRow, FiringRow.run == RunRow.id)
        .where(FiringRow.schedule == schedule.id, RunRow.status.not_in(final))
    )
    return [make_run(row) for row in session.scalars(query.order_by(FiringRow.due_at))]


def list_page(
    session: Session, *, project: str | None = None, after: str = "", limit: int = 100
) -> list[Schedule]:
    """List schedules by project and name, starting after `after` (PROJECT/NAME)."""
    query = select(ScheduleRow).order_by(ScheduleRow.project, ScheduleRow.name)
    if project is not None:
        query = query.where(ScheduleRow.project == project)
    if after:
        position = tuple_(ScheduleRow.project, ScheduleRow.name)
        query = query.where(position > tuple_(*after.split("/", 1)))
    return [make_value(Schedule, row) for row in session.scalars(query.limit(limit))]


def list_firings(
    session: Session, schedule: Schedule, *, before: float | None = None, limit: int = 100
) -> list[Firing]:
    """List the firings of a schedule, newest first, with due times before `before`."""
    query = select(FiringRow).where(FiringRow.schedule == schedule.id)
    if before is not None:
        query = query.where(FiringRow.due_at < before)
    rows = session.scalars(query.order_by(FiringRow.due_at.desc()).limit(limit))
    return [make_value(Firing, row) for row in rows]


def remove(session: Session, schedule: Schedule) -> None:
    """Delete a schedule and its firings; its runs stay. Raise LostUpdate."""
    row = session.get(ScheduleRow, schedule.id, populate_existing=True)
    if row is None or row.revision != schedule.revision:
        current_version = 0 if row is None else row.revision
        raise LostUpdate(f"schedule {schedule.name}", schedule.revision, current_version)
    session.delete(row)
