"""Write what a loop is looking at, so that what kills the process is found after its restart."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.registry.database import Database
from orchestrator.registry.tenancy import looks
from orchestrator.registry.tenancy.looks import Look, LookVerdict
from orchestrator.registry.tenancy.quarantine import ItemKind

PROCESS_TIMEOUT_S = 30.0


class LookKeeper:
    """Writes the looks of one loop of one process."""

    def __init__(
        self, database: Database, loop: str, holder: str, *, timeout_s: float = PROCESS_TIMEOUT_S
    ) -> None:
        self._database, self._holder, self._timeout_s = database, holder, timeout_s
        # A process that died leaves its row, so each process has rows of its own.
        self._loop = f"{loop[:80]}/{holder[-40:]}"
        self._is_open = self._is_closed = False
        self._lock = threading.Lock()

    @contextmanager
    def look(self, kind: ItemKind, item: str, project: str | None = None) -> Iterator[LookVerdict]:
        """Begin a look, and end it whatever happens but the death of the process.

        The caller looks only if the verdict is CLEAR.
        """
        verdict = self._begin(Look(self._loop, self._holder, kind, item, project))
        try:
            yield verdict
        finally:
            self._end()

    def close(self) -> None:
        """Delete the look that is open: the process ends by request, which proves nothing."""
        with self._lock:
            self._is_closed = True
            self._delete()

    def _begin(self, look: Look) -> LookVerdict:
        with self._lock:
            if self._is_closed:
                return LookVerdict.BUSY
            with self._database.write() as session:
                verdict = looks.begin(session, look, timeout_s=self._timeout_s)
            self._is_open = verdict is LookVerdict.CLEAR
            return verdict

    def _end(self) -> None:
        with self._lock:
            self._delete()

    def _delete(self) -> None:
        if self._is_open:
            with self._database.write() as session:
                looks.end(session, self._loop)
            self._is_open = False
