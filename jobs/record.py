"""What a run writes down as it goes: events, step metrics, TensorBoard. Only rank 0 writes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from jobs.progress import Pace
from jobs.store.directory import DirectoryStore
from jobs.store.runs import RunStore


class Record:
    """The run's papers. On other ranks than 0 every call does nothing."""

    def __init__(self, runs: RunStore, *, writes: bool) -> None:
        self._runs, self._writes = runs, writes
        self._board: SummaryWriter | None = None
        if writes and isinstance(runs.store, DirectoryStore):
            folder = runs.store.path(runs.key("tensorboard"))
            self._board = SummaryWriter(log_dir=str(folder))

    def event(self, kind: str, **facts: Any) -> None:
        """Something that happened."""
        if self._writes:
            self._runs.events.append({"event": kind, "time": time.time(), **facts})

    def pace(self, what: str, total: int) -> Pace:
        """Counts a piece of work that may take long; what it tells becomes an event."""
        return Pace(total, lambda done, of: self.event("progress", what=what, done=done, of=of))

    def step(self, step: int, stage: str, measured: Mapping[str, float]) -> None:
        """One optimiser step."""
        if self._writes:
            self._runs.metrics.append({"step": step, "stage": stage, **measured})
            self._draw("train", step, measured)

    def evaluation(self, at: str, step: int, measured: Mapping[str, float], seconds: float) -> None:
        """One evaluation, named by where in the run it stands."""
        self.event("evaluated", at=at, step=step, metrics=dict(measured), seconds=seconds)
        if self._writes:
            self._runs.metrics.append({"step": step, "evaluation": at, **measured})
            self._draw("eval", step, measured)

    def paper(self, name: str, value: Mapping[str, Any]) -> None:
        """One of the run's JSON files, over an older one."""
        if self._writes:
            self._runs.write_json(name, value)

    def close(self) -> None:
        """Sends what TensorBoard and the journals still hold."""
        if self._writes:
            self._runs.events.flush()
            self._runs.metrics.flush()
        if self._board is not None:
            self._board.close()

    def _draw(self, group: str, step: int, measured: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in measured.items():
                self._board.add_scalar(f"{group}/{name}", value, step)
