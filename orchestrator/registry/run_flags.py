"""What is written on a run beside its moves: that it should stop, why it waits, that it was seen.

A wish to stop is an event of its own, since people look for it; why a run waits is none, as it may
change with every look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from orchestrator.registry.db_clock import now
from orchestrator.registry.errors import LostUpdate
from orchestrator.registry.lifecycle import FINAL, Reason
from orchestrator.registry.runs import REGISTRY_ORIGIN, STATUSES_WITHOUT_JOB, get
from orchestrator.registry.tables import AttemptRow, EventRow, RunRow
from orchestrator.registry.values import Attempt, Run, clean_text, make_run, make_value


def request_stop(session: Session, run: Run, reason: Reason = Reason.USER) -> Run:
    """The run should end. One that is over, or was asked before, stays as it is."""
    if run.status in FINAL or run.stop is not None:
        return run
    row = session.scalar(
        update(RunRow)
        .where(RunRow.id == run.id, RunRow.revision == run.revision)
        .values(stop=reason.value, updated_at=now(), revision=run.revision + 1)
        .returning(RunRow)
        .execution_options(populate_existing=True)
    )
    if row is None:
        raise LostUpdate(f"run {run.id}", run.revision, get(session, run.id).revision)
    stopping = make_run(row)
    values = {
        "run": run.id,
        "origin": REGISTRY_ORIGIN,
        "position": stopping.revision,
        "at": now(),
        "kind": "stopping",
        "attempt": run.attempt,
        "body": {"reason": reason.value},
    }
    session.execute(insert(EventRow).values(values))
    return stopping


def set_wait_reason(session: Session, run: Run, reason: str) -> Run:
    """Why a planned run is not submitted yet; no event, and no new revision."""
    reason = clean_text(reason)
    if run.wait_reason != reason:
        session.execute(update(RunRow).where(RunRow.id == run.id).values(wait_reason=reason))
    return replace(run, wait_reason=reason)


def set_not_before(session: Session, run: Run, seconds: float) -> None:
    """Another attempt is made so many seconds from now at the earliest."""
    session.execute(update(RunRow).where(RunRow.id == run.id).values(not_before=now() + seconds))


def mark_acknowledged(session: Session, runs: Sequence[Run]) -> None:
    """Their clusters know the jobs of their newest attempts; the first sighting counts."""
    for run in runs:
        session.execute(
            update(AttemptRow)
            .where(
                AttemptRow.run == run.id,
                AttemptRow.number == run.attempt,
                AttemptRow.acknowledged_at.is_(None),
            )
            .values(acknowledged_at=now())
        )


def set_trained_tokens(session: Session, run: Run, tokens: int | None) -> None:
    """What the run has trained, now that it is known: it counts in place of what it might have."""
    if tokens is not None:
        session.execute(update(RunRow).where(RunRow.id == run.id).values(tokens=tokens))


def get_newest_attempt(session: Session, run: Run) -> Attempt | None:
    """The attempt that the run's number names; None before the first."""
    row = session.get(AttemptRow, (run.id, run.attempt), populate_existing=True)
    return None if row is None else make_value(Attempt, row)


def list_active_runs(session: Session, cluster: str) -> list[Run]:
    """The runs of a cluster whose newest attempt is not through, the oldest first."""
    inactive = [status.value for status in STATUSES_WITHOUT_JOB]
    query = select(RunRow).where(
        RunRow.cluster == cluster, RunRow.status.not_in(inactive), RunRow.attempt > 0
    )
    return [make_run(row) for row in session.scalars(query.order_by(RunRow.created_at, RunRow.id))]
