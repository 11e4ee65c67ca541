"""Progress of a loop, once it takes longer than people wait unasked: on stderr, or as events."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

PATIENCE_S = 2.0
EVERY_S = 1.0


class Pace:
    """Counts what is done; tells it after two seconds, then once a second."""

    def __init__(self, total: int, tell: Callable[[int, int], None]) -> None:
        self._total, self._tell = total, tell
        self._done, self._told = 0, time.monotonic() + PATIENCE_S - EVERY_S

    def seen(self, name: str = "") -> None:
        """One more is done."""
        self._done += 1
        if time.monotonic() - self._told >= EVERY_S:
            self._told = time.monotonic()
            self._tell(self._done, self._total)


def on_stderr(what: str, total: int, *, quiet: bool = False) -> Pace:
    """A pace that is told as lines for whoever waits."""

    def tell(done: int, of: int) -> None:
        if not quiet:
            print(f"{what}: {done} of {of}", file=sys.stderr, flush=True)

    return Pace(total, tell)
