"""How much is in the registry."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from orchestrator.registry.clock import now
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.models import AdapterRow, RunRow, Table


def row_counts(session: Session) -> dict[str, int]:
    """Rows of each table by its name, the runs by their status too."""
    found = {
        name: session.scalar(select(func.count()).select_from(table)) or 0
        for name, table in sorted(Table.metadata.tables.items())
    }
    by_status = sorted(runs_by_status(session).items())
    return found | {f"runs {status}": count for status, count in by_status if count}


def runs_by_status(session: Session) -> dict[str, int]:
    """How many runs have each status, those that none has too."""
    found = session.execute(
        select(RunRow.status, func.count().label("number")).group_by(RunRow.status)
    )
    return {status.value: 0 for status in Status} | {row.status: row.number for row in found}


def oldest_planned(session: Session) -> float:
    """Seconds that the oldest planned run has waited; 0 where none waits."""
    asked = select(now() - func.min(RunRow.created_at)).where(RunRow.status == Status.PLANNED.value)
    return max(0.0, session.scalar(asked) or 0.0)


def adapters_count(session: Session) -> int:
    """Versions that are known."""
    return session.scalar(select(func.count()).select_from(AdapterRow)) or 0
