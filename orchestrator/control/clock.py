"""The clock of a service: that of the database, which all services of a registry share."""

from __future__ import annotations

from typing import Protocol

from sqlalchemy import select

from orchestrator.registry.database import Database
from orchestrator.registry.db_clock import now


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> float:
        """Return the seconds since 1970."""


class DatabaseClock:
    """The clock of the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def now(self) -> float:
        """Query the time. Raise DatabaseUnreachable."""
        with self._database.read() as session:
            seconds = session.scalar(select(now()))
        assert seconds is not None
        return float(seconds)
