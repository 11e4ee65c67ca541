"""Bytes by step: read the counters of the interfaces whenever the run writes a journal line."""

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

from jobs.store.runs.journal import Journal
from jobs.store.runs.remote_journal import RemoteJournal

POLL_INTERVAL_S = 0.005
ByteCounts = tuple[int, ...]
AnyJournal = Journal | RemoteJournal


@dataclass(frozen=True)
class TrafficSample:
    """Bytes that the hosts had sent when a journal line appeared."""

    at: float
    sent: ByteCounts
    line: dict[str, Any]

    @property
    def is_step(self) -> bool:
        """Return whether the line records an optimizer step."""
        return "stage" in self.line and "loss" in self.line


@dataclass(frozen=True)
class StageTraffic:
    """Traffic of one stage. Bytes are those of the host that sent most."""

    stage: str
    steps: int
    bytes_per_step: float
    """Median over windows of `every` steps."""
    least: float
    most: float
    seconds_per_step: float


@contextmanager
def record_traffic(
    journals: Sequence[AnyJournal], sent: Callable[[], ByteCounts]
) -> Iterator[list[TrafficSample]]:
    """Collect samples in the list that is provided, while the block runs."""
    samples = [TrafficSample(time.monotonic(), sent(), {})]
    stopped = threading.Event()
    watcher = threading.Thread(target=_watch, args=(journals, sent, samples, stopped), daemon=True)
    watcher.start()
    try:
        yield samples
    finally:
        stopped.set()
        watcher.join()
        samples.append(TrafficSample(time.monotonic(), sent(), {}))


def _watch(
    journals: Sequence[AnyJournal],
    sent: Callable[[], ByteCounts],
    samples: list[TrafficSample],
    stopped: threading.Event,
) -> None:
    offsets = [0] * len(journals)
    while not stopped.wait(POLL_INTERVAL_S):
        for index, journal in enumerate(journals):
            lines, offsets[index] = journal.tail(offsets[index])
            if lines:
                now, bytes_now = time.monotonic(), sent()
                samples.extend(TrafficSample(now, bytes_now, line) for line in lines)


def measure_stages(samples: Sequence[TrafficSample], *, every: int = 1) -> list[StageTraffic]:
    """Return the traffic of each stage; `every` steps share an exchange (sync_every)."""
    steps_by_stage: dict[str, list[tuple[ByteCounts, float]]] = defaultdict(list)
    # Count from the previous line of any kind: evaluations and checkpoints have their own lines.
    for before, after in pairwise(samples):
        if after.is_step:
            sent = tuple(now - then for then, now in zip(before.sent, after.sent, strict=True))
            steps_by_stage[after.line["stage"]].append((sent, after.at - before.at))
    return [_compute_traffic(stage, steps, every) for stage, steps in steps_by_stage.items()]


def _compute_traffic(
    stage: str, steps: Sequence[tuple[ByteCounts, float]], every: int
) -> StageTraffic:
    busiest = max(_split_by_host([sent for sent, _ in steps], every), key=statistics.median)
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


def _split_by_host(steps: Sequence[ByteCounts], every: int) -> list[list[float]]:
    """Return bytes per step of each window, by host; a short last window counts only if alone."""
    windows = [steps[start : start + every] for start in range(0, len(steps), every)]
    complete = [window for window in windows if len(window) == every] or windows
    return [
        [sum(sent[host] for sent in window) / len(window) for window in complete]
        for host in range(len(steps[0]))
    ]
