"""Watch a run's journals while it runs. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from jobs.store.runs.run_store import RunStore


def watch_events(
    run_store: RunStore, is_over: Callable[[], bool], *, poll_s: float, from_end: bool = False
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Yield the new events and the new steps, the last time after `is_over` has returned True.

    With `from_end`, entries that exist already are skipped.
    """
    events_at = run_store.events.tail(0)[1] if from_end else 0
    metrics_at = run_store.metrics.tail(0)[1] if from_end else 0
    while True:
        last = is_over()
        events, events_at = run_store.events.tail(events_at)
        metrics, metrics_at = run_store.metrics.tail(metrics_at)
        yield events, [metric for metric in metrics if "evaluation" not in metric]
        if last:
            return
        time.sleep(poll_s)
