"""Whether the registry can be written: a small write, repeated at most every other second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from orchestrator.registry.errors import DatabaseFailed

CACHE_S = 2.0
MAX_ANSWER_AGE_S = 10.0
"""A write that takes longer than this is answered as a failure, while it goes on."""


class WriteProbe:
    """Probes whether something can be written."""

    def __init__(
        self, write: Callable[[], object], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._clock = write, clock
        self._is_writable, self._answered_at = False, float("-inf")
        self._lock = threading.Lock()

    def check(self) -> bool:
        """Return whether a write of the last seconds succeeded.

        Only one caller writes at a time, and the others get the last answer: a database that is
        locked must not take all threads of the service.
        """
        if self._clock() - self._answered_at < CACHE_S:
            return self._is_writable
        if not self._lock.acquire(blocking=False):
            return self._is_writable and self._clock() - self._answered_at < MAX_ANSWER_AGE_S
        try:
            self._write()
            self._is_writable = True
        except DatabaseFailed:
            self._is_writable = False
        finally:
            self._answered_at = self._clock()
            self._lock.release()
        return self._is_writable
