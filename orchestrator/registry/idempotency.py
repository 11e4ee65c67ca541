"""Idempotency keys: a submission that is repeated with its key returns the same run."""

from __future__ import annotations

from sqlalchemy.orm import Session

from jobs.errors import Fault, InputError
from orchestrator.registry import runs
from orchestrator.registry.database import insert_once
from orchestrator.registry.errors import DuplicateKey
from orchestrator.registry.tables import RequestRow
from orchestrator.registry.values import Run


def find_run(session: Session, project: str, key: str, digest: str) -> Run | None:
    """Find the run of a key. Raise InputError if the key was used for another submission."""
    row = session.get(RequestRow, (project, key))
    if row is None:
        return None
    if row.digest != digest:
        problem = f"{key[:60]!a} was already used for another submission"
        raise InputError([Fault("Idempotency-Key", problem, "Use a new key.")])
    return runs.get(session, row.run)


def record_run(session: Session, project: str, key: str, digest: str, run: Run) -> None:
    """Record the run of a key. Raise DuplicateKey if the key has a run by now."""
    values = {"project": project, "key": key, "digest": digest, "run": run.id}
    if insert_once(session, RequestRow, values, timestamp_columns=("created_at",)) is None:
        raise DuplicateKey("Idempotency-Key", key)
