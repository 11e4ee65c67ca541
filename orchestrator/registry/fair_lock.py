"""Turns among threads, in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque


class FairLock:
    """A lock that is handed to whoever waits longest.

    SQLite's own waiting sleeps and looks again, and Python's lock goes to whoever is quickest: a
    thread that writes in a loop keeps others out for as long as it likes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locked = False
        self._waiters: deque[threading.Lock] = deque()

    def acquire(self, seconds: float) -> bool:
        """Waits for the turn; False where it did not come in time."""
        with self._lock:
            if not self._locked:
                self._locked = True
                return True
            waiter = threading.Lock()
            waiter.acquire()
            self._waiters.append(waiter)
        if waiter.acquire(timeout=seconds):
            return True
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                return False
        return True  # it came while we gave up

    def release(self) -> None:
        """The turn is over: the next one's begins."""
        with self._lock:
            if self._waiters:
                self._waiters.popleft().release()
            else:
                self._locked = False
