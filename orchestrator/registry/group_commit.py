"""Writes of many callers at once, in one transaction: the disk is waited for once for all of them.

Whoever comes while another one writes waits, and of those that waited one writes for all. Each
write is a savepoint of its own: one that fails costs its own caller alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sqlalchemy.orm import Session

from orchestrator.registry.database import Database, translate_database_errors
from orchestrator.registry.errors import DatabaseUnreachable

MAX_BATCH = 64
"""Writes in one transaction, so that nobody else waits long for a turn."""

Result = TypeVar("Result")


class _PendingWrite(Generic[Result]):
    """A write that is wanted, and what came of it."""

    def __init__(self, work: Callable[[Session], Result]) -> None:
        self._work = work
        self.done = False
        self._result: Result | None = None
        self._error: BaseException | None = None

    def run(self, session: Session, display_url: str) -> None:
        """Does it, or undoes what it began. Raises DatabaseUnreachable: none of all can be done."""
        try:
            with translate_database_errors(display_url), session.begin_nested():
                self._result = self._work(session)
        except DatabaseUnreachable:
            raise
        except Exception as error:
            self._error = error

    def fail(self, error: BaseException) -> None:
        """The transaction as a whole did not come about."""
        self._error = self._error or error

    def get_result(self) -> Result:
        """What its caller gets."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]


class GroupCommit:
    """A door to writes that share transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[_PendingWrite[Any]] = []
        self._waiting_lock, self._writer_lock = threading.Lock(), threading.Lock()

    def write(self, work: Callable[[Session], Result]) -> Result:
        """What `work` returns, once it is written; what it raises, nothing of it being written."""
        pending = _PendingWrite(work)
        with self._waiting_lock:
            self._waiting.append(pending)
        with self._writer_lock:
            while not pending.done:
                self._write_batch()
        return pending.get_result()

    def _write_batch(self) -> None:
        with self._waiting_lock:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
        try:
            with self._database.write() as session:
                for pending in batch:
                    pending.run(session, self._database.display_url)
        except BaseException as error:
            for pending in batch:
                pending.fail(error)
        for pending in batch:
            pending.done = True
