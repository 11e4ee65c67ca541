"""How long to wait for a service that does not answer: short at first, and not for ever."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 5.0


@dataclass(frozen=True)
class RetryBudget:
    """For how long it is tried again, and the clock that this is measured by."""

    request_s: float = 5.0
    """A question: as long as a service takes to start again in its place."""
    follow_s: float = 300.0
    """A log or events that are followed: as long as an upgrade takes."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Backoff:
    """Waits between two tries, doubling; says no once the time is up.

    `waiting` hears why, once in each silence.
    """

    def __init__(
        self, budget: RetryBudget, seconds: float, on_retry: Callable[[str], None] | None = None
    ) -> None:
        self._budget, self._seconds, self._on_retry = budget, seconds, on_retry
        self._next_pause_s, self._is_retrying = FIRST_PAUSE_S, False
        self._deadline = budget.clock() + seconds

    def wait_to_retry(self, reason: str, min_pause_s: float = 0.0) -> bool:
        """Waits and says yes, or says no at once where no time is left."""
        # Not all at the same moment, when many followers lost the same service.
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
        """It answered: the next silence is a new one."""
        self._deadline = self._budget.clock() + self._seconds
        self._next_pause_s, self._is_retrying = FIRST_PAUSE_S, False
