"""Progress of a job's own loop on stderr, once it takes longer than people wait unasked."""

from __future__ import annotations

import sys
import time

PATIENCE_S = 2.0
EVERY_S = 1.0


class Steps:
    """Counts what is done; says so after two seconds, then once a second."""

    def __init__(self, what: str, total: int, *, quiet: bool = False) -> None:
        self._what, self._total, self._quiet = what, total, quiet
        self._done, self._said = 0, time.monotonic() + PATIENCE_S - EVERY_S

    def seen(self, name: str) -> None:
        """One more is done."""
        self._done += 1
        if not self._quiet and time.monotonic() - self._said >= EVERY_S:
            self._said = time.monotonic()
            print(f"{self._what}: {self._done} of {self._total}", file=sys.stderr, flush=True)
