"""Print a run's events and steps on the job's output while the job runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.store.runs.run_store import RunStore
from jobs.train.monitor.event_text import format_event, format_step
from jobs.train.monitor.watch_events import watch_events

POLL_INTERVAL_S = 0.5
"""Seconds between two polls of the run's journal."""
STEP_LINE_INTERVAL_S = 5.0
"""Print a step at most this often."""


@contextmanager
def log_events(runs: RunStore) -> Iterator[None]:
    """Print the run's events while the block runs, from a thread."""
    stop = threading.Event()
    thread = threading.Thread(target=_print_events, args=(runs, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


def _print_events(runs: RunStore, stop: threading.Event) -> None:
    steps, last_step_line = 0, 0.0
    polls = watch_events(runs, lambda: stop.wait(POLL_INTERVAL_S), poll_s=0, from_end=True)
    for events, step_metrics in polls:
        for event in events:
            steps = event.get("steps", steps) if event.get("event") == "started" else steps
            if (line := format_event(event)) is not None:
                print(line, flush=True)
        if step_metrics and time.monotonic() - last_step_line >= STEP_LINE_INTERVAL_S:
            last_step_line = time.monotonic()
            print(format_step(step_metrics[-1], steps), flush=True)
