"""Bytes by step: the interfaces' counters are read whenever the run's journals get a new line."""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from jobs.store.journal import Journal

LOOK_S = 0.005
Sent = tuple[int, ...]


@dataclass(frozen=True)
class Mark:
    """What the hosts had sent when a line of a journal was seen."""

    at: float
    sent: Sent
    line: dict[str, Any]

    @property
    def step(self) -> bool:
        """Whether the line tells an optimiser step."""
        return "stage" in self.line and "loss" in self.line


@dataclass(frozen=True)
class StageTraffic:
    """One stage on the wire. Bytes are those out of the host that sent most."""

    stage: str
    steps: int
    bytes_per_step: float
    """The median over windows of `every` steps; without a step that ends in several windows."""
    least: float
    most: float
    seconds_per_step: float


@contextmanager
def watching(journals: Sequence[Journal], sent: Callable[[], Sent]) -> Iterator[list[Mark]]:
    """Marks, as the journals grow while the block runs."""
    marks = [Mark(time.monotonic(), sent(), {})]
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(journals, sent, marks, over), daemon=True)
    watcher.start()
    try:
        yield marks
    finally:
        over.set()
        watcher.join()
        marks.append(Mark(time.monotonic(), sent(), {}))


def _watch(
    journals: Sequence[Journal], sent: Callable[[], Sent], marks: list[Mark], over: threading.Event
) -> None:
    places = [0] * len(journals)
    while not over.wait(LOOK_S):
        for index, journal in enumerate(journals):
            lines, places[index] = journal.tail(places[index])
            if lines:
                now, bytes_now = time.monotonic(), sent()
                marks.extend(Mark(now, bytes_now, line) for line in lines)


def stages(marks: Sequence[Mark], *, every: int = 1) -> list[StageTraffic]:
    """The stages in their order; `every` is how many steps share an exchange (sync_every)."""
    taken: dict[str, list[tuple[Sent, float]]] = defaultdict(list)
    # From the line before, whatever it tells: evaluations and checkpoints have lines of their own.
    for before, after in pairwise(marks):
        if after.step:
            gone = tuple(now - then for then, now in zip(before.sent, after.sent, strict=True))
            taken[after.line["stage"]].append((gone, after.at - before.at))
    return [_traffic(stage, steps, every) for stage, steps in taken.items()]


def _traffic(stage: str, steps: Sequence[tuple[Sent, float]], every: int) -> StageTraffic:
    busiest = max(_by_host([gone for gone, _ in steps], every), key=statistics.median)
    return StageTraffic(
        stage=stage,
        steps=len(steps),
        bytes_per_step=statistics.median(busiest),
        least=min(busiest),
        most=max(busiest),
        seconds_per_step=sum(seconds for _, seconds in steps) / len(steps)
        if every > 1
        else statistics.median(seconds for _, seconds in steps),
    )


def _by_host(steps: Sequence[Sent], every: int) -> list[list[float]]:
    """For each host its bytes a step, a figure a window; a short last window counts only alone."""
    windows = [steps[at : at + every] for at in range(0, len(steps), every)]
    whole = [window for window in windows if len(window) == every] or windows
    return [
        [sum(gone[host] for gone in window) / len(window) for window in whole]
        for host in range(len(steps[0]))
    ]
