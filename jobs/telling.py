"""A run's events and steps as lines on the job's output, for as long as the job runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.narrate import line_of, step_line
from jobs.store.runs import RunStore

TICK_S = 0.5
"""Seconds between two looks at the run's journal."""
STEP_LINE_S = 5.0
"""A line about a step at most this often."""


@contextmanager
def told(runs: RunStore) -> Iterator[None]:
    """Prints the run's events as lines while the block runs, from a thread of its own."""
    over = threading.Event()
    teller = threading.Thread(target=_tell, args=(runs, over), daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join(timeout=10)


def _tell(runs: RunStore, over: threading.Event) -> None:
    _, events_at = runs.events.tail(0)
    _, metrics_at = runs.metrics.tail(0)
    steps, told = 0, 0.0
    while True:
        last = over.wait(TICK_S)
        events, events_at = runs.events.tail(events_at)
        metrics, metrics_at = runs.metrics.tail(metrics_at)
        for event in events:
            steps = event.get("steps", steps) if event.get("event") == "started" else steps
            if (line := line_of(event)) is not None:
                print(line, flush=True)
        newest = [metric for metric in metrics if "evaluation" not in metric]
        if newest and time.monotonic() - told >= STEP_LINE_S:
            told = time.monotonic()
            print(step_line(newest[-1], steps), flush=True)
        if last:
            return
