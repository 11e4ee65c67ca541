"""Rows for the registry's tests, and ways to age what only time would age."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from orchestrator.registry import runs
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.values import NewRun, Run

STORE = "file:///store/"
TO_RUNNING = (Status.SUBMITTED, Status.RUNNING)


def make_new_run(run_id: str = "r1", **changes: Any) -> NewRun:
    return NewRun(**{"id": run_id, "name": "chat", "store": STORE, **changes})


def add_run(database: Database, run_id: str = "r1", **changes: Any) -> Run:
    with database.write() as session:
        return runs.add(session, make_new_run(run_id, **changes))


def move_run(database: Database, run: Run, *path: Status, reason: Reason | None = None) -> Run:
    """Along a path; the reason belongs to its last status."""
    for to in path:
        with database.write() as session:
            run = runs.move(session, run, to, reason=reason if to is path[-1] else None)
    return run


def age_leases(database: Database, seconds: float) -> None:
    """As if so much time had passed for every lease."""
    with database.write() as session:
        session.execute(text("UPDATE leases SET expires_at = expires_at - :s"), {"s": seconds})


def read_rows(database: Database, table: str) -> list[dict[str, Any]]:
    with database.read() as session:
        rows = session.execute(text(f"SELECT * FROM {table}")).mappings()
        return sorted((dict(row) for row in rows), key=str)
