"""The health of the loops: each reports every pass and every item that it begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

EXPECTED_ITEM_S = 180.0
"""An item that takes longer hangs: its requests to other machines have timeouts, so a cluster or a
store that does not answer makes no loop late."""


class LoopHealth:
    """When each loop of a service made progress last, on the clock of the process."""

    def __init__(
        self, intervals_s: Mapping[str, float], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._limits_s = {
            name: 2 * interval + EXPECTED_ITEM_S for name, interval in intervals_s.items()
        }
        self._beats = dict.fromkeys(intervals_s, clock())

    def beat(self, loop: str) -> None:
        """Record that a loop made progress."""
        self._beats[loop] = self._clock()

    def measure_age(self, loop: str) -> float:
        """Return the seconds since the last progress of a loop."""
        return self._clock() - self._beats[loop]

    def find_late_loops(self) -> dict[str, float]:
        """Return the age of each loop that is late."""
        ages = {loop: self.measure_age(loop) for loop in self._beats}
        return {loop: age for loop, age in ages.items() if age > self._limits_s[loop]}
