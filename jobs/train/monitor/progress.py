"""Progress of a loop that takes longer than two seconds: on stderr, or as events."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

FIRST_REPORT_S = 2.0
REPORT_INTERVAL_S = 1.0


class ProgressReporter:
    """Counts, and reports after two seconds, then once a second."""

    def __init__(self, total: int, report: Callable[[int, int], None]) -> None:
        self._total, self._report = total, report
        self._done, self._last_report = 0, time.monotonic() + FIRST_REPORT_S - REPORT_INTERVAL_S

    def advance(self, name: str = "") -> None:
        """Count one more."""
        self._done += 1
        if time.monotonic() - self._last_report >= REPORT_INTERVAL_S:
            self._last_report = time.monotonic()
            self._report(self._done, self._total)


def make_stderr_reporter(label: str, total: int, *, quiet: bool = False) -> ProgressReporter:
    """Return a reporter that prints lines on stderr."""

    def report(done: int, count: int) -> None:
        if not quiet:
            print(f"{label}: {done} of {count}", file=sys.stderr, flush=True)

    return ProgressReporter(total, report)
