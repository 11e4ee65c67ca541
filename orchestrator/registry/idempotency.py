"""Submissions under a key of their sender's: asked again, the same run is the answer."""

from __future__ import annotations

from sqlalchemy import delete
from sqlalchemy.orm import Session

from jobs.errors import Fault, InputError
from orchestrator.registry import runs
from orchestrator.registry.database import insert_once
from orchestrator.registry.db_clock import now
from orchestrator.registry.errors import DuplicateKey
from orchestrator.registry.tables import RequestRow
from orchestrator.registry.values import Run

RETENTION_S = 7 * 86400.0
"""As long as a sender may repeat itself."""


def find_run(session: Session, project: str, key: str, digest: str) -> Run | None:
    """The run that the key was given, if any. InputError where it was for something else."""
    row = session.get(RequestRow, (project, key))
    if row is None:
        return None
    if row.digest != digest:
        problem = f"{key[:60]!a} was used for another submission"
        raise InputError([Fault("Idempotency-Key", problem, "Use a new key.")])
    return runs.get(session, row.run)


def record_run(session: Session, project: str, key: str, digest: str, run: Run) -> None:
    """Remember the run that the key was given. Raises Taken where it was given one meanwhile."""
    values = {"project": project, "key": key, "digest": digest, "run": run.id}
    if insert_once(session, RequestRow, values, timestamp_columns=("created_at",)) is None:
        raise DuplicateKey("Idempotency-Key", key)


def delete_expired(session: Session) -> None:
    """Drop the keys that nobody repeats any more."""
    session.execute(delete(RequestRow).where(RequestRow.created_at < now() - RETENTION_S))
