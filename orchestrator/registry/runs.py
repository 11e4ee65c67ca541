"""Add runs, move them along the lifecycle, and list them by page.

Every change of a run writes an event with the new revision in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from sqlalchemy import Row, Table, insert, select, tuple_, update
from sqlalchemy.orm import Session

from orchestrator.registry import leases, projects
from orchestrator.registry.database import insert_once
from orchestrator.registry.db_clock import now
from orchestrator.registry.errors import DuplicateKey, LostUpdate, UnknownItem
from orchestrator.registry.leases import Lease
from orchestrator.registry.lifecycle import FINAL, OVER, Reason, Status, check_move
from orchestrator.registry.run_request import RunRequest
from orchestrator.registry.tables import AttemptRow, EventRow, RunRow
from orchestrator.registry.tenancy import quotas
from orchestrator.registry.tenancy.audit_log import SERVICE, Actor
from orchestrator.registry.values import (
    Attempt,
    Event,
    Run,
    check_id,
    clean_text,
    format_submission_id,
    make_run,
    make_value,
)

REGISTRY_ORIGIN = "registry"
"""Origin of what the control plane wrote."""
PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
STATUSES_WITHOUT_JOB = FINAL | {Status.PLANNED}

_EVENTS, _RUNS = cast(Table, EventRow.__table__), cast(Table, RunRow.__table__)


def add(session: Session, run_id: str, request: RunRequest, *, by: Actor = SERVICE) -> Run:
    """Add a planned run that belongs to `by`.

    Raise DuplicateKey if the id is in use, or QuotaExceeded.
    """
    project = projects.ensure_project(session, request.project)
    quotas.check_run(session, project, request.priority, request)
    values = {
        **request.model_dump(exclude={"format", "data", "spec_text", "instance"}),
        "id": check_id(run_id, "run"),
        "status": Status.PLANNED.value,
        "detail": "",
        "attempt": 0,
        "origin": REGISTRY_ORIGIN,
        "by_token": by.token,
        "by_label": by.label,
        "revision": 1,
    }
    row = insert_once(session, RunRow, values, timestamp_columns=("created_at", "updated_at"))
    if row is None:
        raise DuplicateKey("run", run_id)
    run = make_run(row)
    _write_event(session, run, {})
    return run


def get(session: Session, run_id: str) -> Run:
    """Read a run. Raise UnknownItem."""
    row = session.scalar(
        select(RunRow).where(RunRow.id == run_id).execution_options(populate_existing=True)
    )
    if row is None:
        raise UnknownItem("run", run_id)
    return make_run(row)


def move(
    session: Session,
    run: Run,
    target: Status,
    *,
    reason: Reason | None = None,
    detail: str = "",
    lease: Lease | None = None,
) -> Run:
    """Move a run, if it is as it was read. A move to submitted begins the next attempt.

    `lease` must be held until the move is committed. Raise ForbiddenMove, LostUpdate or LeaseLost.
    """
    if lease is not None:
        leases.guard(session, lease)
    check_move(run.status, target, reason)
    moved = _update_run(session, run, target, reason, detail)
    if target is Status.SUBMITTED:
        _begin_attempt(session, moved)
    elif _should_update_attempt(run.status, target):
        _update_attempt(session, moved)
    _write_event(session, moved, {"cluster": run.cluster} if target is Status.SUBMITTED else {})
    return moved


def select_rows(
    session: Session,
    filters: Mapping[str, str | None],
    *,
    after: tuple[float, str] | None = None,
    limit: int = PAGE_SIZE,
) -> Sequence[Row[Any]]:
    """Select a page of plain rows, newest first; mapping them to objects would double its cost.

    `after` is the time of creation and the id of the run before the page.
    """
    query = select(*_RUNS.c).order_by(_RUNS.c.created_at.desc(), _RUNS.c.id.desc())
    for column, value in filters.items():
        if value is not None:
            query = query.where(_RUNS.c[column] == value)
    if after is not None:
        position = tuple_(_RUNS.c.created_at, _RUNS.c.id)
        query = query.where(position < tuple_(*after))
    return session.execute(query.limit(min(limit, MAX_PAGE_SIZE))).all()


def list_attempts(session: Session, run_id: str) -> list[Attempt]:
    """List the attempts of a run, oldest first."""
    rows = session.scalars(
        select(AttemptRow).where(AttemptRow.run == run_id).order_by(AttemptRow.number)
    )
    return [_make_attempt(row) for row in rows]


def list_events(
    session: Session,
    run_id: str,
    *,
    origin: str = REGISTRY_ORIGIN,
    after: int = 0,
    limit: int = MAX_PAGE_SIZE,
) -> list[Event]:
    """List the events of a run after the position `after`, in order and without gaps."""
    query = select(EventRow).where(
        EventRow.run == run_id, EventRow.origin == origin, EventRow.position > after
    )
    rows = session.scalars(query.order_by(EventRow.position).limit(min(limit, MAX_PAGE_SIZE)))
    return [make_value(Event, row) for row in rows]


def _update_run(
    session: Session, run: Run, target: Status, reason: Reason | None, detail: str
) -> Run:
    row = session.scalar(
        update(RunRow)
        .where(RunRow.id == run.id, RunRow.revision == run.revision)
        .values(
            status=target.value,
            reason=None if reason is None else reason.value,
            detail=clean_text(detail),
            attempt=run.attempt + (target is Status.SUBMITTED),
            origin=REGISTRY_ORIGIN,
            updated_at=now(),
            revision=run.revision + 1,
        )
        .returning(RunRow)
        .execution_options(populate_existing=True)
    )
    if row is None:
        raise LostUpdate(f"run {run.id}", run.revision, get(session, run.id).revision)
    return make_run(row)


def _begin_attempt(session: Session, run: Run) -> None:
    values = {
        "run": run.id,
        "number": run.attempt,
        "submission": format_submission_id(run.id, run.attempt),
        "cluster": run.cluster,
        "status": run.status.value,
        "created_at": now(),
    }
    session.execute(insert(AttemptRow).values(values))


def _should_update_attempt(previous: Status, target: Status) -> bool:
    """Return whether a move also changes the attempt: not if no job of it runs any more."""
    return previous is not Status.PLANNED and not (
        previous is Status.LOST and target in STATUSES_WITHOUT_JOB
    )


def _update_attempt(session: Session, run: Run) -> None:
    reason = None if run.reason is None else run.reason.value
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.run == run.id, AttemptRow.number == run.attempt)
        .values(
            status=run.status.value,
            reason=reason,
            ended_at=now() if run.status in OVER else None,
        )
    )


def _write_event(session: Session, run: Run, body: Mapping[str, Any]) -> None:
    detail = {"detail": run.detail} if run.detail else {}
    reason = {"reason": run.reason.value} if run.reason else {}
    values = {
        "run": run.id,
        "origin": REGISTRY_ORIGIN,
        "position": run.revision,
        "at": now(),
        "kind": run.status.value,
        "attempt": run.attempt,
        "body": {**body, **reason, **detail},
    }
    # Insert into the table directly: this runs for every move of every run.
    session.execute(insert(_EVENTS).values(values))


def _make_attempt(row: AttemptRow) -> Attempt:
    reason = None if row.reason is None else Reason(row.reason)
    return make_value(Attempt, row, status=Status(row.status), reason=reason)
