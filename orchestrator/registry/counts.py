"""Count the rows of the registry."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from orchestrator.registry.db_clock import now
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.tables import AdapterRow, RunRow, TableBase


def count_rows(session: Session) -> dict[str, int]:
    """Count the rows of each table, and the runs of each status."""
    counts = {
        name: session.scalar(select(func.count()).select_from(table)) or 0
        for name, table in sorted(TableBase.metadata.tables.items())
    }
    by_status = sorted(count_runs_by_status(session).items())
    return counts | {f"runs {status}": count for status, count in by_status if count}


def count_runs_by_status(session: Session) -> dict[str, int]:
    """Count the runs by status, including statuses without runs."""
    rows = session.execute(
        select(RunRow.status, func.count().label("number")).group_by(RunRow.status)
    )
    return {status.value: 0 for status in Status} | {row.status: row.number for row in rows}


def measure_oldest_wait(session: Session) -> float:
    """Return the seconds that the oldest planned run has waited; 0 if there is none."""
    query = select(now() - func.min(RunRow.created_at)).where(RunRow.status == Status.PLANNED.value)
    return max(0.0, session.scalar(query) or 0.0)


def count_adapters(session: Session) -> int:
    """Count the adapter versions."""
    return session.scalar(select(func.count()).select_from(AdapterRow)) or 0
