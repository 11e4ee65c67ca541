"""Runs in the registry: added once, moved along the lifecycle by guarded updates, listed by page.

Every change of a run is one event at the revision that it made, written in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from sqlalchemy import Row, Table, insert, select, tuple_, update
from sqlalchemy.orm import Session

from orchestrator.registry import leases, projects
from orchestrator.registry.clock import now
from orchestrator.registry.database import insert_once
from orchestrator.registry.errors import LostUpdate, StaleAttempt, Taken, Unknown
from orchestrator.registry.leases import Lease
from orchestrator.registry.lifecycle import FINAL, OVER, Reason, Status, check_move
from orchestrator.registry.models import AttemptRow, EventRow, RunRow
from orchestrator.registry.values import (
    Attempt,
    Event,
    NewRun,
    Run,
    run_of,
    submission_id,
    told,
    value_of,
)

HERE = "registry"
"""The origin of what the control plane itself saw and did."""
PAGE = 50
LARGEST_PAGE = 1000
NO_JOB = FINAL | {Status.PLANNED}

_EVENTS, _RUNS = cast(Table, EventRow.__table__), cast(Table, RunRow.__table__)


class Placed(Protocol):
    """Where a run is among all: a run, or what is remembered of one."""

    @property
    def created_at(self) -> float:
        """When it was asked for."""
        ...

    @property
    def id(self) -> str:
        """Which of those of one moment."""
        ...


def add(session: Session, new: NewRun) -> Run:
    """A planned run. Raises Taken where the id is in use."""
    projects.ensure(session, new.project)
    start = {"status": Status.PLANNED.value, "detail": "", "attempt": 0, "origin": HERE}
    values = {**new.model_dump(), **start, "revision": 1}
    row = insert_once(session, RunRow, values, at=("created_at", "updated_at"))
    if row is None:
        raise Taken("run", new.id)
    run = run_of(row)
    _write_event(session, run, {})
    return run


def get(session: Session, run_id: str) -> Run:
    """The run as it is now, or Unknown."""
    row = session.scalar(
        select(RunRow).where(RunRow.id == run_id).execution_options(populate_existing=True)
    )
    if row is None:
        raise Unknown("run", run_id)
    return run_of(row)


def move(
    session: Session,
    run: Run,
    to: Status,
    *,
    reason: Reason | None = None,
    detail: str = "",
    attempt: int | None = None,
    lease: Lease | None = None,
) -> Run:
    """Move a run as it was read. Submitted begins the next attempt, on the run's cluster.

    `attempt`: on whose behalf; an older one than the run's is refused. `lease`: what the mover has
    to hold until it is written. Raises ForbiddenMove, LostUpdate, StaleAttempt, LeaseLost.
    """
    if lease is not None:
        leases.guard(session, lease)
    if attempt is not None and attempt != (current := get(session, run.id)).attempt:
        raise StaleAttempt(run.id, attempt, current.attempt)
    check_move(run.status, to, reason)
    moved = _update(session, run, to, reason, detail)
    if to is Status.SUBMITTED:
        _begin_attempt(session, moved)
    elif _speaks_of_its_attempt(run.status, to):
        _follow_attempt(session, moved)
    _write_event(session, moved, {"cluster": run.cluster} if to is Status.SUBMITTED else {})
    return moved


def page(
    session: Session,
    *,
    project: str | None = None,
    status: Status | None = None,
    name: str | None = None,
    kind: str | None = None,
    after: Placed | None = None,
    limit: int = PAGE,
) -> list[Run]:
    """Runs, the newest first, from behind `after` on."""
    filters = {"project": project, "status": status, "name": name, "kind": kind}
    return [run_of(row) for row in rows(session, filters, after=after, limit=limit)]


def rows(
    session: Session,
    filters: Mapping[str, str | None],
    *,
    after: Placed | None = None,
    limit: int = PAGE,
) -> Sequence[Row[Any]]:
    """The same as rows, past the mapper, which is half of what a page costs."""
    asked = select(*_RUNS.c).order_by(_RUNS.c.created_at.desc(), _RUNS.c.id.desc())
    for column, wanted in filters.items():
        if wanted is not None:
            asked = asked.where(_RUNS.c[column] == wanted)
    if after is not None:
        place = tuple_(_RUNS.c.created_at, _RUNS.c.id)
        asked = asked.where(place < tuple_(after.created_at, after.id))
    return session.execute(asked.limit(min(limit, LARGEST_PAGE))).all()


def attempts(session: Session, run_id: str) -> list[Attempt]:
    """A run's attempts, the first one first."""
    rows = session.scalars(
        select(AttemptRow).where(AttemptRow.run == run_id).order_by(AttemptRow.number)
    )
    return [_attempt_of(row) for row in rows]


def events(
    session: Session, run_id: str, *, origin: str = HERE, after: int = 0, limit: int = LARGEST_PAGE
) -> list[Event]:
    """What happened to a run behind the position `after`, in its order; none is ever skipped."""
    asked = select(EventRow).where(
        EventRow.run == run_id, EventRow.origin == origin, EventRow.position > after
    )
    rows = session.scalars(asked.order_by(EventRow.position).limit(min(limit, LARGEST_PAGE)))
    return [value_of(Event, row) for row in rows]


def _update(session: Session, run: Run, to: Status, reason: Reason | None, detail: str) -> Run:
    row = session.scalar(
        update(RunRow)
        .where(RunRow.id == run.id, RunRow.revision == run.revision)
        .values(
            status=to.value,
            reason=None if reason is None else reason.value,
            detail=told(detail),
            attempt=run.attempt + (to is Status.SUBMITTED),
            origin=HERE,
            updated_at=now(),
            revision=run.revision + 1,
        )
        .returning(RunRow)
        .execution_options(populate_existing=True)
    )
    if row is None:
        raise LostUpdate(f"run {run.id}", run.revision, get(session, run.id).revision)
    return run_of(row)


def _begin_attempt(session: Session, run: Run) -> None:
    values = {
        "run": run.id,
        "number": run.attempt,
        "submission": submission_id(run.id, run.attempt),
        "cluster": run.cluster,
        "status": run.status.value,
        "created_at": now(),
    }
    session.execute(insert(AttemptRow).values(values))


def _speaks_of_its_attempt(before: Status, to: Status) -> bool:
    """A run that is given up while no job of it runs changes nothing of how its last one ended."""
    return before is not Status.PLANNED and not (before is Status.LOST and to in NO_JOB)


def _follow_attempt(session: Session, run: Run) -> None:
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
    said = {"detail": run.detail} if run.detail else {}
    why = {"reason": run.reason.value} if run.reason else {}
    values = {
        "run": run.id,
        "origin": HERE,
        "position": run.revision,
        "at": now(),
        "kind": run.status.value,
        "attempt": run.attempt,
        "body": {**body, **why, **said},
    }
    # Into the table, past the mapper: one for every move of every run.
    session.execute(insert(_EVENTS).values(values))


def _attempt_of(row: AttemptRow) -> Attempt:
    reason = None if row.reason is None else Reason(row.reason)
    return value_of(Attempt, row, status=Status(row.status), reason=reason)
