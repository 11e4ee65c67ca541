"""The recorder of a run: events, step metrics, TensorBoard. Only rank 0 writes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jobs.store.runs.run_store import RunStore
from jobs.train.monitor.phases import PhaseClock, PhaseStart
from jobs.train.monitor.progress import ProgressReporter

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunRecorder:
    """Writes the run's files. On ranks other than 0 every call does nothing."""

    def __init__(self, runs: RunStore, *, writes: bool, start: PhaseStart | None = None) -> None:
        self._runs, self._is_writer = runs, writes
        self._phases = (
            PhaseClock(runs.phase_events, start) if start is not None and writes else None
        )
        self._summary_writer: SummaryWriter | None = None

    def emit_event(self, kind: str, **facts: Any) -> None:
        """Append an event to the journal."""
        if self._is_writer:
            self._runs.events.append({"event": kind, "time": time.time(), **facts})

    def end_phase(self, phase: str) -> None:
        """End a phase of the run's start, which is recorded until its first step has ended."""
        if self._phases is not None:
            self._phases.end(phase)

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
        folder = self._runs.store.local_path(self._runs.key("tensorboard"))
        if folder is None:
            return
        if self._summary_writer is None:
            # Imported with the first figure: it takes a fifth of a second before the first step.
            from torch.utils.tensorboard import SummaryWriter

            self._summary_writer = SummaryWriter(log_dir=str(folder))
        for name, value in metrics.items():
            self._summary_writer.add_scalar(f"{group}/{name}", value, step)
