"""A run followed as it goes, by its journals: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from jobs.store.runs.run_store import RunStore
from jobs.train.monitor.event_text import escape_control, format_event, format_number, format_step
from orchestrator.cli.console import err_console, format_duration, note

POLL_S = 0.25
STEP_LINE_INTERVAL_S = 5.0
"""Where there is no terminal, a line about a step at most this often."""


class ProgressDisplay(Protocol):
    """Shows what the journals say."""

    def show_event(self, event: Mapping[str, Any]) -> None: ...
    def show_step(self, metric: Mapping[str, Any]) -> None: ...


def follow_run(run_store: RunStore, display: ProgressDisplay, is_alive: Callable[[], bool]) -> None:
    """Shows events and steps until `alive` says no, and what came after the last look too."""
    events_at = metrics_at = 0
    while True:
        last = not is_alive()
        events, events_at = run_store.events.tail(events_at)
        metrics, metrics_at = run_store.metrics.tail(metrics_at)
        for event in events:
            display.show_event(event)
        for metric in metrics:
            if "evaluation" not in metric:
                display.show_step(metric)
        if last:
            return
        time.sleep(POLL_S)


class LineDisplay:
    """For logs and pipes: one line an event, and one now and then for the steps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps, self._last_line_at, self._clock = 0, -STEP_LINE_INTERVAL_S, clock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show_event(self, event: Mapping[str, Any]) -> None:
        if event.get("event") == "started":
            self._steps = event["steps"]
        if (line := format_event(event)) is not None:
            note(line)

    def show_step(self, metric: Mapping[str, Any]) -> None:
        if (
            self._clock() - self._last_line_at >= STEP_LINE_INTERVAL_S
            or metric["step"] == self._steps
        ):
            self._last_line_at = self._clock()
            if (line := format_step(metric, self._steps)) is not None:
                note(line)


class BarDisplay:
    """For a terminal: the events as lines, and below them one bar for all the steps."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}", markup=False),
            console=err_console,
        )
        self._task = self._bar.add_task("starting", total=None, said="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show_event(self, event: Mapping[str, Any]) -> None:
        kind = event.get("event")
        if kind == "started":
            self._bar.update(self._task, total=event["steps"])
        if kind == "stage":
            self._bar.update(self._task, description=escape_control(event["stage"]))
        if (line := format_event(event)) is not None:
            self._bar.console.print(Text(escape_control(line)))

    def show_step(self, metric: Mapping[str, Any]) -> None:
        total = self._bar.tasks[0].total or metric["step"]
        remaining = (total - metric["step"]) * metric["seconds"] / metric["step"]
        status_text = (
            f"loss {format_number(metric['loss'], '.3f')}  {metric['tokens_per_second']:.0f} tok/s  "
            f"{format_duration(remaining)} left"
        )
        self._bar.update(
            self._task,
            completed=metric["step"],
            description=escape_control(metric["stage"]),
            said=status_text,
        )


def make_display() -> LineDisplay | BarDisplay:
    """The one that suits where stderr goes."""
    return BarDisplay() if err_console.is_terminal else LineDisplay()
