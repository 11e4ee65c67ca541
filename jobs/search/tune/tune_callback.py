"""What Tune tells of the trials, written into the diary and said to whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayTaskError
from ray.tune import Callback, Stopper

from jobs.search.trial_log import TrialLog
from jobs.search.trial_record import TrialRecord
from jobs.search.tune.trainable import REQUEST_KEY, TrialRequest
from jobs.spec.load import dump_spec
from jobs.spec.schema import SearchSpec
from jobs.store.open import open_store
from jobs.store.runs.run_store import SPEC, RunStore


class TrialRecorder(Callback):  # type: ignore[misc]  # Ray has no types that mypy may lean on
    """Keeps each trial's row up to date."""

    def __init__(
        self, search: SearchSpec, trial_log: TrialLog, on_change: Callable[[TrialRecord], None]
    ) -> None:
        self._search, self._trial_log, self._on_change = search, trial_log, on_change
        self._started_at: dict[int, float] = {}
        self.end_reason = ""
        """Which budget ended the search."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Of a trial that was paused too: it goes on."""
        record = self._get_record(trial)
        request: TrialRequest = trial.config[REQUEST_KEY]
        runs = RunStore(open_store(request.request.spec.store), record.run)
        runs.write_text(SPEC, dump_spec(request.request.spec))
        # Anew where it was paused: it held nothing of the cluster meanwhile.
        self._started_at[record.number] = time.monotonic()
        if record.status != "running" or record.config != request.config:
            self._on_change(self._trial_log.write(record, status="running", config=request.config))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """An evaluation, or the end."""
        record = self._get_record(trial)
        metric, step = result.get("metric"), int(result["step"])
        curve = record.curve
        if metric is not None and all(step > evaluated for evaluated, _value in curve):
            curve = (*curve, (step, float(metric)))
        record = self._trial_log.write(
            record,
            metric=record.metric if metric is None else float(metric),
            curve=curve,
            steps=max(record.steps, step),
            tokens=max(record.tokens, int(result["tokens"])),
            seconds=record.seconds + self._count_seconds(record.number),
            shared=tuple(dict.fromkeys((*record.shared, *result["taken"]))),
        )
        if result["failed"]:
            self._trial_log.write(record, status="failed", reason=result["failed"])
        elif result["ended"]:
            self._trial_log.write(record, status="done")
        else:
            self._on_change(record)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Its own end, or the scheduler's decision, or the budget's."""
        record = self._get_record(trial)
        if not record.is_finished:
            scheduler = self._search.section.scheduler
            reason = self.end_reason or f"{scheduler} stopped it at step {record.steps}"
            record = self._trial_log.write(record, status="stopped", reason=reason)
        self._on_change(record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """The trial's own actor died, more often than it may."""
        record = self._get_record(trial)
        if not record.is_finished:
            record = self._trial_log.write(
                record, status="failed", reason=_describe_error(trial.get_pickled_error())
            )
        self._on_change(record)

    def _get_record(self, trial: Any) -> TrialRecord:
        record = self._trial_log.get_record(trial.config[REQUEST_KEY].number)
        assert record is not None
        return record

    def _count_seconds(self, number: int) -> float:
        now = time.monotonic()
        started = self._started_at.get(number, now)
        self._started_at[number] = now
        return now - started


def _describe_error(error: Exception | None) -> str:
    if isinstance(error, RayTaskError):
        message = " ".join(str(error.cause).split())[:500]
        return f"{type(error.cause).__name__}: {message}"
    return "its process died, more often than cluster.max_failures allows"


class BudgetStopper(Stopper):  # type: ignore[misc]  # Ray has no types that mypy may lean on
    """Ends the search when its tokens, its time or its money are spent."""

    def __init__(
        self, search: SearchSpec, trial_log: TrialLog, on_exhausted: Callable[[str], None]
    ) -> None:
        self._search, self._trial_log, self._on_exhausted = search, trial_log, on_exhausted

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is ended by this alone."""
        return False

    def stop_all(self) -> bool:
        """Asked by Tune after every result."""
        reason = describe_spent_budget(self._search, self._trial_log)
        if reason is not None:
            self._on_exhausted(reason)
        return reason is not None


def describe_spent_budget(search: SearchSpec, trial_log: TrialLog) -> str | None:
    """Which budget is used up, in words; None while none is."""
    budget, machine = search.section.budget, search.cluster.machine
    if budget.tokens is not None and trial_log.count_tokens() >= budget.tokens:
        return f"the budget of {budget.tokens:,} tokens is spent"
    if budget.seconds is not None and trial_log.count_seconds() >= budget.seconds:
        return f"the budget of {budget.seconds:g} s is spent"
    if budget.cost is not None and machine.price_per_hour is not None:
        hours = (
            sum(record.seconds * _count_machines(search, record) for record in trial_log.records)
            / 3600
        )
        if hours * machine.price_per_hour >= budget.cost:
            return f"the budget of {budget.cost:g} is spent"
    return None


def _count_machines(search: SearchSpec, record: TrialRecord) -> int:
    workers = int(record.config.get("cluster.workers", search.workers))
    return -(-workers // (search.cluster.machine.workers_per_node or workers))
