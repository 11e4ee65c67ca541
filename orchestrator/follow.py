"""A run followed as it goes, by its journals: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from jobs.narrate import line_of, number, plain, step_line
from jobs.store.runs import RunStore
from orchestrator.console import duration_text, note, notes

TICK_S = 0.25
LINE_S = 5.0
"""Where there is no terminal, a line about a step at most this often."""


class Teller(Protocol):
    """Shows what the journals say."""

    def event(self, event: Mapping[str, Any]) -> None: ...
    def step(self, metric: Mapping[str, Any]) -> None: ...


def follow(runs: RunStore, teller: Teller, alive: Callable[[], bool]) -> None:
    """Shows events and steps until `alive` says no, and what came after the last look too."""
    events_at = metrics_at = 0
    while True:
        last = not alive()
        events, events_at = runs.events.tail(events_at)
        metrics, metrics_at = runs.metrics.tail(metrics_at)
        for event in events:
            teller.event(event)
        for metric in metrics:
            if "evaluation" not in metric:
                teller.step(metric)
        if last:
            return
        time.sleep(TICK_S)


class LineTeller:
    """For logs and pipes: one line an event, and one now and then for the steps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps, self._told, self._clock = 0, -LINE_S, clock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def event(self, event: Mapping[str, Any]) -> None:
        if event.get("event") == "started":
            self._steps = event["steps"]
        if (line := line_of(event)) is not None:
            note(line)

    def step(self, metric: Mapping[str, Any]) -> None:
        if self._clock() - self._told >= LINE_S or metric["step"] == self._steps:
            self._told = self._clock()
            if (line := step_line(metric, self._steps)) is not None:
                note(line)


class BarTeller:
    """For a terminal: the events as lines, and below them one bar for all the steps."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}", markup=False),
            console=notes,
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

    def event(self, event: Mapping[str, Any]) -> None:
        kind = event.get("event")
        if kind == "started":
            self._bar.update(self._task, total=event["steps"])
        if kind == "stage":
            self._bar.update(self._task, description=plain(event["stage"]))
        if (line := line_of(event)) is not None:
            self._bar.console.print(Text(plain(line)))

    def step(self, metric: Mapping[str, Any]) -> None:
        total = self._bar.tasks[0].total or metric["step"]
        left = (total - metric["step"]) * metric["seconds"] / metric["step"]
        said = (
            f"loss {number(metric['loss'], '.3f')}  {metric['tokens_per_second']:.0f} tok/s  "
            f"{duration_text(left)} left"
        )
        self._bar.update(
            self._task, completed=metric["step"], description=plain(metric["stage"]), said=said
        )


def teller() -> LineTeller | BarTeller:
    """The one that suits where stderr goes."""
    return BarTeller() if notes.is_terminal else LineTeller()
