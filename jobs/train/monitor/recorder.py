"""The recorder of a run: events, step metrics, TensorBoard. Only rank 0 writes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from jobs.store.runs.run_store import RunStore
from jobs.train.monitor.progress import ProgressReporter


class RunRecorder:
    """Writes the run's files. On ranks other than 0 every call does nothing."""

    def __init__(self, runs: RunStore, *, writes: bool) -> None:
        self._runs, self._is_writer = runs, writes
        self._summary_writer: SummaryWriter | None = None
        folder = runs.store.local_path(runs.key("tensorboard"))
        if writes and folder is not None:
            self._summary_writer = SummaryWriter(log_dir=str(folder))

    def emit_event(self, kind: str, **facts: Any) -> None:
        """Append an event to the journal."""
        if self._is_writer:
            self._runs.events.append({"event": kind, "time": time.time(), **facts})

    def track_progress(self, label: str, total: int) -> ProgressReporter:
        """Return a reporter for a loop that may take long; its reports become events."""
        return ProgressReporter(
            total,
            lambda done, total_count: self.emit_event(
                "progress", what=label, done=done, of=total_count
            ),
        )

    def record_step(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
        """Record one optimizer step."""
        if self._is_writer:
            self._runs.metrics.append({"step": step, "stage": stage, **metrics})
            self._write_scalars("train", step, metrics)

    def record_evaluation(
        self, at: str, step: int, metrics: Mapping[str, float], seconds: float
    ) -> None:
        """Record one evaluation, named by where in the run it was made."""
        self.emit_event("evaluated", at=at, step=step, metrics=dict(metrics), seconds=seconds)
        if self._is_writer:
            self._runs.metrics.append({"step": step, "evaluation": at, **metrics})
            self._write_scalars("eval", step, metrics)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one of the run's JSON files, over an older one."""
        if self._is_writer:
            self._runs.write_json(name, value)

    def close(self) -> None:
        """Flush TensorBoard and the journals."""
        if self._is_writer:
            self._runs.events.flush()
            self._runs.metrics.flush()
        if self._summary_writer is not None:
            self._summary_writer.close()

    def _write_scalars(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        if self._summary_writer is not None:
            for name, value in metrics.items():
                self._summary_writer.add_scalar(f"{group}/{name}", value, step)
