"""How long to wait for a service that does not answer: short at first, and not for ever."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_S = 0.1
LONGEST_S = 5.0


@dataclass(frozen=True)
class Patience:
    """For how long it is tried again, and the clock that this is measured by."""

    ask_s: float = 5.0
    """A question: as long as a service takes to start again in its place."""
    follow_s: float = 300.0
    """A log or events that are followed: as long as an upgrade takes."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Pauses:
    """Waits between two tries, doubling; says no once the time is up.

    `waiting` hears why, once in each silence.
    """

    def __init__(
        self, patience: Patience, seconds: float, waiting: Callable[[str], None] | None = None
    ) -> None:
        self._patience, self._seconds, self._waiting = patience, seconds, waiting
        self._next, self._silent = FIRST_S, False
        self._until = patience.clock() + seconds

    def again(self, why: str, at_least: float = 0.0) -> bool:
        """Waits and says yes, or says no at once where no time is left."""
        # Not all at the same moment, when many followers lost the same service.
        pause = max(at_least, self._next * random.uniform(0.5, 1.0))
        if self._patience.clock() + pause > self._until:
            return False
        if self._waiting is not None and not self._silent:
            self._waiting(why)
        self._silent = True
        self._next = min(LONGEST_S, self._next * 2)
        self._patience.sleep(pause)
        return True

    def heard(self) -> None:
        """It answered: the next silence is a new one."""
        self._until = self._patience.clock() + self._seconds
        self._next, self._silent = FIRST_S, False
