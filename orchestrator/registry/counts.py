"""How much is in the registry."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from orchestrator.registry.db_clock import now
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.tables import AdapterRow, RunRow, TableBase


def count_rows(session: Session) -> dict[str, int]:
    """Rows of each table by its name, the runs by their status too."""
    counts = {
        name: session.scalar(select(func.count()).select_from(table)) or 0
        for name, table in sorted(TableBase.metadata.tables.items())
    }
    by_status = sorted(count_runs_by_status(session).items())
    return counts | {f"runs {status}": count for status, count in by_status if count}


def count_runs_by_status(session: Session) -> dict[str, int]:
    """How many runs have each status, those that none has too."""
    rows = session.execute(
        select(RunRow.status, func.count().label("number")).group_by(RunRow.status)
    )
    return {status.value: 0 for status in Status} | {row.status: row.number for row in rows}


def measure_oldest_wait(session: Session) -> float:
    """Seconds that the oldest planned run has waited; 0 where none waits."""
    query = select(now() - func.min(RunRow.created_at)).where(RunRow.status == Status.PLANNED.value)
    return max(0.0, session.scalar(query) or 0.0)


def count_adapters(session: Session) -> int:
    """Versions that are known."""
    return session.scalar(select(func.count()).select_from(AdapterRow)) or 0
