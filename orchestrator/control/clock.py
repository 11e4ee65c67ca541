"""The door to time: the database's, which all services of one registry share, or a test's."""

from __future__ import annotations

from typing import Protocol

from sqlalchemy import select

from orchestrator.registry.database import Database
from orchestrator.registry.db_clock import now


class Clock(Protocol):
    """Says what time it is."""

    def now(self) -> float:
        """Seconds since 1970."""
        ...


class DatabaseClock:
    """The database's own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def now(self) -> float:
        """Asks it. Raises DatabaseUnreachable."""
        with self._database.read() as session:
            seconds = session.scalar(select(now()))
        assert seconds is not None
        return float(seconds)


class SettableClock:
    """The stand-in: stays where it is set."""

    def __init__(self, at: float) -> None:
        self.at = at

    def now(self) -> float:
        """Where it was set to."""
        return self.at
