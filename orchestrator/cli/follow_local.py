"""Follow a local run by its journals: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from jobs.store.runs.run_store import RunStore
from jobs.train.monitor.event_text import escape_control, format_event, format_number, format_step
from jobs.train.monitor.watch_events import watch_events
from orchestrator.cli.console import err_console, format_duration, note

POLL_S = 0.25
STEP_LINE_INTERVAL_S = 5.0
"""Without a terminal, minimum seconds between two lines about steps."""


def follow_run(
    run_store: RunStore, display: LineDisplay | BarDisplay, is_alive: Callable[[], bool]
) -> None:
    """Show events and steps until `is_alive` returns False, including the last ones."""
    for events, steps in watch_events(run_store, lambda: not is_alive(), poll_s=POLL_S):
        for event in events:
            display.show_event(event)
        for metric in steps:
            display.show_step(metric)


@contextmanager
def open_display() -> Iterator[LineDisplay | BarDisplay]:
    """Yield a bar if stderr is a terminal, otherwise lines."""
    if not err_console.is_terminal:
        yield LineDisplay()
        return
    display = BarDisplay()
    with display.bar:
        yield display


class LineDisplay:
    """For logs and pipes: a line per event, and a line for the steps now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps, self._last_line_at, self._clock = 0, -STEP_LINE_INTERVAL_S, clock

    def show_event(self, event: Mapping[str, Any]) -> None:
        if event.get("event") == "started":
            self._steps = event["steps"]
        if (line := format_event(event)) is not None:
            note(line)

    def show_step(self, metric: Mapping[str, Any]) -> None:
        now = self._clock()
        if now - self._last_line_at >= STEP_LINE_INTERVAL_S or metric["step"] == self._steps:
            self._last_line_at = now
            if (line := format_step(metric, self._steps)) is not None:
                note(line)


class BarDisplay:
    """For a terminal: a line per event, and below them one bar for all the steps."""

    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=err_console,
        )
        self._task = self.bar.add_task("starting", total=None, status="")

    def show_event(self, event: Mapping[str, Any]) -> None:
        kind = event.get("event")
        if kind == "started":
            self.bar.update(self._task, total=event["steps"])
        if kind == "stage":
            self.bar.update(self._task, description=escape_control(event["stage"]))
        if (line := format_event(event)) is not None:
            self.bar.console.print(Text(escape_control(line)))

    def show_step(self, metric: Mapping[str, Any]) -> None:
        total = self.bar.tasks[0].total or metric["step"]
        remaining = (total - metric["step"]) * metric["seconds"] / metric["step"]
        status = (
            f"loss {format_number(metric['loss'], '.3f')}  "
            f"{metric['tokens_per_second']:.0f} tok/s  {format_duration(remaining)} left"
        )
        stage = escape_control(metric["stage"])
        self.bar.update(self._task, completed=metric["step"], description=stage, status=status)
