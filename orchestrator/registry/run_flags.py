"""Changes of a run beside its moves: stop requests, wait reasons and acknowledged submissions.

A stop request writes an event. A wait reason does not, because it may change with every poll.
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
    """Request that a run stops. Change nothing if it has ended or has such a request."""
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
    """Set why a planned run is not submitted yet, without an event or a new revision."""
    reason = clean_text(reason)
    if run.wait_reason != reason:
        session.execute(update(RunRow).where(RunRow.id == run.id).values(wait_reason=reason))
    return replace(run, wait_reason=reason)


def set_not_before(session: Session, run: Run, seconds: float) -> None:
    """Delay the next attempt by `seconds` from now."""
    session.execute(update(RunRow).where(RunRow.id == run.id).values(not_before=now() + seconds))


def mark_acknowledged(session: Session, runs: Sequence[Run]) -> None:
    """Mark that the cluster knows the jobs of the newest attempts; keep the first time."""
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
    """Replace the estimated tokens of a run with those that it trained on, if they are known."""
    if tokens is not None:
        session.execute(update(RunRow).where(RunRow.id == run.id).values(tokens=tokens))


def get_newest_attempt(session: Session, run: Run) -> Attempt | None:
    """Return the newest attempt of a run; None before the first."""
    row = session.get(AttemptRow, (run.id, run.attempt), populate_existing=True)
    return None if row is None else make_value(Attempt, row)


def list_active_runs(session: Session, cluster: str) -> list[Run]:
    """List the runs of a cluster whose newest attempt has not ended, oldest first."""
    inactive = [status.value for status in STATUSES_WITHOUT_JOB]
    query = select(RunRow).where(
        RunRow.cluster == cluster, RunRow.status.not_in(inactive), RunRow.attempt > 0
    )
    return [make_run(row) for row in session.scalars(query.order_by(RunRow.created_at, RunRow.id))]
