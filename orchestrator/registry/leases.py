"""Leases: one holder at a time, with an expiry on the database's clock and a growing number.

A process may be suspended past the expiry of its lease without noticing. Writes that need the lease
therefore start with `guard`, which locks the lease's row until the transaction ends, so that nobody
acquires it meanwhile. The number (`fence`) protects what is written outside the database.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import ColumnElement, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from orchestrator.registry.database import Database
from orchestrator.registry.db_clock import now
from orchestrator.registry.errors import LeaseLost
from orchestrator.registry.tables import LeaseRow
from orchestrator.registry.values import check_id, make_value


@dataclass(frozen=True)
class Lease:
    """A lease as its holder read it."""

    name: str
    holder: str
    fence: int
    expires_at: float
    """Time on the database's clock."""


def acquire(session: Session, name: str, holder: str, *, seconds: float) -> Lease | None:
    """Acquire the lease under a new number; return None while it is held.

    `holder` names one process. A lease that is held is not acquired again by its own holder either.
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
        return None  # another process acquired it first
    return make_value(Lease, session.scalar(select(LeaseRow).where(LeaseRow.name == name)))


def renew(session: Session, lease: Lease, *, seconds: float) -> Lease:
    """Extend the lease. Raise LeaseLost if it expired, even if nobody acquired it since."""
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
    """Release the lease; do nothing if it is lost. Its number is not used again."""
    session.execute(update(LeaseRow).where(*_match_lease(lease)).values(expires_at=0.0))


def guard(session: Session, lease: Lease) -> None:
    """Lock the lease's row until the transaction ends. Raise LeaseLost."""
    query = select(LeaseRow.fence).where(*_match_lease(lease)).with_for_update(read=True)
    if session.scalar(query) is None:
        raise LeaseLost(lease.name, lease.holder, lease.fence)


class LeaseKeeper:
    """Keeps one lease for one holder, over many transactions."""

    def __init__(self, database: Database, name: str, holder: str, *, seconds: float) -> None:
        self._database, self._name, self._holder, self._seconds = database, name, holder, seconds
        self._lease: Lease | None = None

    def ensure(self) -> Lease | None:
        """Extend the lease or acquire it; return None while another holds it."""
        with self._database.write() as session:
            if self._lease is not None:
                with suppress(LeaseLost):
                    self._lease = renew(session, self._lease, seconds=self._seconds)
                    return self._lease
            self._lease = acquire(session, self._name, self._holder, seconds=self._seconds)
            return self._lease

    def release(self) -> None:
        """Release the lease if it is held, so that another holder acquires it at once."""
        if self._lease is not None:
            with self._database.write() as session:
                release(session, self._lease)
            self._lease = None


def _match_lease(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    return (
        LeaseRow.name == lease.name,
        LeaseRow.holder == lease.holder,
        LeaseRow.fence == lease.fence,
        LeaseRow.expires_at > now(),
    )
