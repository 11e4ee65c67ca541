"""How much is in the registry."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from orchestrator.registry.models import RunRow, Table


def row_counts(session: Session) -> dict[str, int]:
    """Rows of each table by its name, the runs by their status too."""
    found = {
        name: session.scalar(select(func.count()).select_from(table)) or 0
        for name, table in sorted(Table.metadata.tables.items())
    }
    by_status = session.execute(select(RunRow.status, func.count()).group_by(RunRow.status))
    return found | {f"runs {status}": count for status, count in sorted(by_status)}
