"""Leases: one holder at a time, until a moment on the database's clock, under a growing number.

A holder may sleep through the end of its lease and not know. So what hangs on a lease is written in
a transaction that `guard` began: it holds the lease's row, and whoever takes the lease over waits
for that row. The number (`fence`) goes along to what has no transaction with us, such as a store.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from orchestrator.registry.db_clock import now
from orchestrator.registry.errors import LeaseLost
from orchestrator.registry.tables import LeaseRow
from orchestrator.registry.values import check_id, make_value


@dataclass(frozen=True)
class Lease:
    """What its holder has in hand."""

    name: str
    holder: str
    fence: int
    expires_at: float
    """By the database's clock."""


def acquire(session: Session, name: str, holder: str, *, seconds: float) -> Lease | None:
    """The lease under a new number, or None while somebody else holds it.

    `holder` names one process: asked again by the same name, a living lease is not given twice.
    """
    name, holder = check_id(name, "lease"), check_id(holder, "holder")
    row = session.scalar(
        update(LeaseRow)
        .where(LeaseRow.name == name, LeaseRow.expires_at <= now())
        .values(holder=holder, fence=LeaseRow.fence + 1, expires_at=now() + seconds)
        .returning(LeaseRow)
        .execution_options(populate_existing=True)
    )
    if row is not None:
        return make_value(Lease, row)
    if session.scalar(select(LeaseRow.name).where(LeaseRow.name == name)) is not None:
        return None
    values = {"name": name, "holder": holder, "fence": 1, "expires_at": now() + seconds}
    try:
        with session.begin_nested():
            session.execute(insert(LeaseRow).values(values))
    except IntegrityError:
        return None  # another one was the first
    return make_value(Lease, session.scalar(select(LeaseRow).where(LeaseRow.name == name)))


def renew(session: Session, lease: Lease, *, seconds: float) -> Lease:
    """The same lease for longer. Raises LeaseLost, also where it lapsed and nobody took it."""
    row = session.scalar(
        update(LeaseRow)
        .where(*_match_lease(lease))
        .values(expires_at=now() + seconds)
        .returning(LeaseRow)
        .execution_options(populate_existing=True)
    )
    if row is None:
        raise LeaseLost(lease.name, lease.holder, lease.fence)
    return make_value(Lease, row)


def release(session: Session, lease: Lease) -> None:
    """Let it go now; one that is lost already is no error. Its number is not used again."""
    session.execute(update(LeaseRow).where(*_match_lease(lease)).values(expires_at=0.0))


def guard(session: Session, lease: Lease) -> None:
    """Hold the lease's row until this transaction ends. Raises LeaseLost."""
    query = select(LeaseRow.fence).where(*_match_lease(lease)).with_for_update(read=True)
    if session.scalar(query) is None:
        raise LeaseLost(lease.name, lease.holder, lease.fence)


def _match_lease(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    return (
        LeaseRow.name == lease.name,
        LeaseRow.holder == lease.holder,
        LeaseRow.fence == lease.fence,
        LeaseRow.expires_at > now(),
    )
