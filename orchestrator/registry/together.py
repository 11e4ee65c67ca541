"""Writes of many callers at once, in one transaction: the disk is waited for once for all of them.

Whoever comes while another one writes waits, and of those that waited one writes for all. Each
write is a savepoint of its own: one that fails costs its own caller alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sqlalchemy.orm import Session

from orchestrator.registry.database import Database, said
from orchestrator.registry.errors import DatabaseUnreachable

MOST = 64
"""Writes in one transaction, so that nobody else waits long for a turn."""

Result = TypeVar("Result")


class _Wish(Generic[Result]):
    """A write that is wanted, and what came of it."""

    def __init__(self, work: Callable[[Session], Result]) -> None:
        self._work = work
        self.done = False
        self._result: Result | None = None
        self._error: BaseException | None = None

    def run(self, session: Session, place: str) -> None:
        """Does it, or undoes what it began. Raises DatabaseUnreachable: none of all can be done."""
        try:
            with said(place), session.begin_nested():
                self._result = self._work(session)
        except DatabaseUnreachable:
            raise
        except Exception as error:
            self._error = error

    def fail(self, error: BaseException) -> None:
        """The transaction as a whole did not come about."""
        self._error = self._error or error

    def answer(self) -> Result:
        """What its caller gets."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]


class Together:
    """A door to writes that share transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[_Wish[Any]] = []
        self._list, self._turn = threading.Lock(), threading.Lock()

    def write(self, work: Callable[[Session], Result]) -> Result:
        """What `work` returns, once it is written; what it raises, nothing of it being written."""
        wish = _Wish(work)
        with self._list:
            self._waiting.append(wish)
        with self._turn:
            while not wish.done:
                self._write_some()
        return wish.answer()

    def _write_some(self) -> None:
        with self._list:
            some, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        try:
            with self._database.write() as session:
                for wish in some:
                    wish.run(session, self._database.place)
        except BaseException as error:
            for wish in some:
                wish.fail(error)
        for wish in some:
            wish.done = True
