"""Rows that are older than a number of days: ended runs, firings, tokens, idempotency keys.

Ages are by the database's clock. Deletions are bounded, so that none blocks submissions for long.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Select, delete, func, or_, select, tuple_
from sqlalchemy.orm import Session

from orchestrator.registry.db_clock import now
from orchestrator.registry.lifecycle import FINAL
from orchestrator.registry.tables import FiringRow, RequestRow, RunRow, TokenRow
from orchestrator.registry.values import Run, make_run

AnySelect = Select[*tuple[Any, ...]]
DAY_S = 86400.0

_ENDED = [status.value for status in FINAL]


def list_expired_runs(
    session: Session, days: int, *, limit: int, skipped_stores: Collection[str] = ()
) -> list[Run]:
    """List runs that ended more than `days` ago, oldest first, without those of some stores."""
    query = select(RunRow).where(
        RunRow.status.in_(_ENDED),
        RunRow.updated_at < now() - days * DAY_S,
        RunRow.store.not_in(list(skipped_stores)),
    )
    rows = session.scalars(query.order_by(RunRow.updated_at, RunRow.id).limit(limit))
    return [make_run(row) for row in rows]


def delete_run_rows(session: Session, run: Run) -> bool:
    """Delete an ended run, its trials, attempts, events and keys; return whether it was there.

    Firings keep their time without the run, and adapters keep the id of the run as text.
    """
    session.execute(delete(RunRow).where(RunRow.search == run.id))
    query = delete(RunRow).where(RunRow.id == run.id, RunRow.status.in_(_ENDED))
    return session.execute(query.returning(RunRow.id)).first() is not None


def select_expired_firings(days: int) -> AnySelect:
    """Select firings older than `days`, except those of runs that have not ended."""
    return (
        select(FiringRow.schedule, FiringRow.due_at)
        .outerjoin(RunRow, RunRow.id == FiringRow.run)
        .where(
            FiringRow.fired_at < now() - days * DAY_S,
            or_(RunRow.id.is_(None), RunRow.status.in_(_ENDED)),
        )
    )


def select_expired_tokens(days: int) -> AnySelect:
    """Select tokens that expired or were revoked more than `days` ago.

    The newest administrator's token of all projects stays: a service without one makes another.
    """
    newest_admin = (
        select(TokenRow.id)
        .where(TokenRow.project.is_(None), TokenRow.scope == "admin")
        .order_by(TokenRow.created_at.desc(), TokenRow.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    limit = now() - days * DAY_S
    return select(TokenRow.id).where(
        or_(TokenRow.expires_at < limit, TokenRow.revoked_at < limit), TokenRow.id != newest_admin
    )


def select_expired_keys(days: int) -> AnySelect:
    """Select idempotency keys older than `days`."""
    query = select(RequestRow.project, RequestRow.key)
    return query.where(RequestRow.created_at < now() - days * DAY_S)


def count_selected(session: Session, query: AnySelect) -> int:
    """Count the rows of a query."""
    return session.scalar(select(func.count()).select_from(query.subquery())) or 0


def delete_firings(session: Session, query: AnySelect, *, limit: int) -> int:
    """Delete at most `limit` of the selected firings. Return how many."""
    key = tuple_(FiringRow.schedule, FiringRow.due_at)
    return _count_deleted(session, delete(FiringRow).where(key.in_(query.limit(limit))))


def delete_tokens(session: Session, query: AnySelect, *, limit: int) -> int:
    """Delete at most `limit` of the selected tokens. Return how many."""
    return _count_deleted(session, delete(TokenRow).where(TokenRow.id.in_(query.limit(limit))))


def delete_keys(session: Session, query: AnySelect, *, limit: int) -> int:
    """Delete at most `limit` of the selected idempotency keys. Return how many."""
    key = tuple_(RequestRow.project, RequestRow.key)
    return _count_deleted(session, delete(RequestRow).where(key.in_(query.limit(limit))))


def _count_deleted(session: Session, statement: Any) -> int:
    result: Any = session.execute(statement.execution_options(synchronize_session=False))
    return int(result.rowcount)
