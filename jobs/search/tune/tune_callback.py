"""Callbacks of Ray Tune that record each trial and end a search whose budget is spent."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayTaskError
from ray.tune import Callback, Stopper

from jobs.search.trial_log import TrialLog
from jobs.search.trial_record import TrialRecord
from jobs.search.tune.trial_task import TASK_KEY, TrialReport, TrialTask
from jobs.spec.load import dump_spec
from jobs.spec.schema import SearchSpec
from jobs.store.open import open_store
from jobs.store.runs.run_store import SPEC, RunStore


class TrialRecorder(Callback):  # type: ignore[misc]  # Ray is untyped
    """Keeps the record of each trial up to date."""

    def __init__(
        self, search: SearchSpec, trial_log: TrialLog, on_change: Callable[[TrialRecord], None]
    ) -> None:
        self._search, self._trial_log, self._on_change = search, trial_log, on_change
        self._started_at: dict[int, float] = {}
        self.end_reason = ""
        """The budget that ended the search, as a message."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Record that a trial starts, or continues after a pause."""
        record = self._get_record(trial)
        task: TrialTask = trial.config[TASK_KEY]
        runs = RunStore(open_store(task.request.spec.store), record.run)
        runs.write_text(SPEC, dump_spec(task.request.spec))
        # Restarted after a pause, because a paused trial holds no resources.
        self._started_at[record.number] = time.monotonic()
        if record.status != "running" or record.config != task.config:
            self._on_change(self._trial_log.write(record, status="running", config=task.config))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """Record an evaluation or the end of a trial."""
        record = self._get_record(trial)
        report: TrialReport = result["report"]
        metric, step = result.get("metric"), report.step
        curve = record.curve
        if metric is not None and all(step > evaluated for evaluated, _value in curve):
            curve = (*curve, (step, float(metric)))
        record = self._trial_log.write(
            record,
            metric=record.metric if metric is None else float(metric),
            curve=curve,
            steps=max(record.steps, step),
            tokens=max(record.tokens, report.tokens),
            seconds=record.seconds + self._count_seconds(record.number),
            shared=tuple(dict.fromkeys((*record.shared, *report.reused))),
        )
        if report.failure:
            self._trial_log.write(record, status="failed", reason=report.failure)
        elif report.ended:
            self._trial_log.write(record, status="done")
        else:
            self._on_change(record)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Record the end of a trial: its own, the scheduler's or the budget's."""
        record = self._get_record(trial)
        if not record.is_finished:
            scheduler = self._search.section.scheduler
            reason = self.end_reason or f"stopped by {scheduler} at step {record.steps}"
            record = self._trial_log.write(record, status="stopped", reason=reason)
        self._on_change(record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Record that the actor of the trial died more often than allowed."""
        record = self._get_record(trial)
        if not record.is_finished:
            record = self._trial_log.write(
                record, status="failed", reason=_describe_error(trial.get_pickled_error())
            )
        self._on_change(record)

    def _get_record(self, trial: Any) -> TrialRecord:
        record = self._trial_log.get_record(trial.config[TASK_KEY].number)
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
    return "its process died more often than cluster.max_failures allows"


class BudgetStopper(Stopper):  # type: ignore[misc]  # Ray is untyped
    """Ends the search when its budget of tokens, time or cost is spent."""

    def __init__(
        self, search: SearchSpec, trial_log: TrialLog, on_exhausted: Callable[[str], None]
    ) -> None:
        self._search, self._trial_log, self._on_exhausted = search, trial_log, on_exhausted

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: no single trial is stopped."""
        return False

    def stop_all(self) -> bool:
        """Return whether the budget is spent; called by Tune after every result."""
        reason = describe_spent_budget(self._search, self._trial_log)
        if reason is not None:
            self._on_exhausted(reason)
        return reason is not None


def describe_spent_budget(search: SearchSpec, trial_log: TrialLog) -> str | None:
    """Return a message about the budget that is spent, or None."""
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
