"""Build rows for tests of the registry, and age leases."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from orchestrator.registry import runs
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.rebuild.rebuild import RebuildResult
from orchestrator.registry.run_request import RunRequest
from orchestrator.registry.values import Run, make_run

STORE = "file:///store/"
TO_RUNNING = (Status.SUBMITTED, Status.RUNNING)


def make_request(**changes: Any) -> RunRequest:
    return RunRequest(**{"name": "chat", "store": STORE, **changes})


def add_run(database: Database, run_id: str = "r1", **changes: Any) -> Run:
    with database.write() as session:
        return runs.add(session, run_id, make_request(**changes))


def move_run(database: Database, run: Run, *path: Status, reason: Reason | None = None) -> Run:
    """Move a run along a path; the reason belongs to the last status."""
    for target in path:
        with database.write() as session:
            run = runs.move(session, run, target, reason=reason if target is path[-1] else None)
    return run


def list_runs(
    session: Session, *, after: Run | None = None, limit: int = 1000, **filters: str
) -> list[Run]:
    """List runs, newest first, as a page of the API does."""
    position = None if after is None else (after.created_at, after.id)
    rows = runs.select_rows(session, filters, after=position, limit=limit)
    return [make_run(row) for row in rows]


def age_leases(database: Database, seconds: float) -> None:
    """Let every lease expire earlier by `seconds`."""
    with database.write() as session:
        session.execute(text("UPDATE leases SET expires_at = expires_at - :s"), {"s": seconds})


def read_rows(database: Database, table: str) -> list[dict[str, Any]]:
    with database.read() as session:
        rows = session.execute(text(f"SELECT * FROM {table}")).mappings()
        return sorted((dict(row) for row in rows), key=str)


def count_changes(result: RebuildResult) -> tuple[int, int, int, int]:
    """Count the changed runs, adapters, searches and events."""
    return result.runs.changed, result.adapters.changed, result.searches.changed, result.events
