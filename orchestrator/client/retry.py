"""Retries of a service that does not answer: exponential backoff within a budget."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 5.0


@dataclass(frozen=True)
class RetryBudget:
    """For how long requests are retried, and the clock that measures it."""

    request_s: float = 5.0
    """Seconds for a request: as long as a service takes to restart."""
    follow_s: float = 300.0
    """Seconds for a log or events that are followed: as long as an upgrade takes."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Backoff:
    """Waits between two tries, each time twice as long, until the time is up.

    `on_retry` gets the reason, once for each interruption.
    """

    def __init__(
        self, budget: RetryBudget, seconds: float, on_retry: Callable[[str], None] | None = None
    ) -> None:
        self._budget, self._seconds, self._on_retry = budget, seconds, on_retry
        self._next_pause_s, self._is_retrying = FIRST_PAUSE_S, False
        self._deadline = budget.clock() + seconds

    def wait_to_retry(self, reason: str, min_pause_s: float = 0.0) -> bool:
        """Wait and return True, or return False at once if the time is up."""
        # Random, so that many followers of one service do not retry at the same moment.
        pause_s = max(min_pause_s, self._next_pause_s * random.uniform(0.5, 1.0))
        if self._budget.clock() + pause_s > self._deadline:
            return False
        if self._on_retry is not None and not self._is_retrying:
            self._on_retry(reason)
        self._is_retrying = True
        self._next_pause_s = min(MAX_PAUSE_S, self._next_pause_s * 2)
        self._budget.sleep(pause_s)
        return True

    def reset(self) -> None:
        """Start a new budget, because the service has answered."""
        self._deadline = self._budget.clock() + self._seconds
        self._next_pause_s, self._is_retrying = FIRST_PAUSE_S, False
