"""The searcher that Ray Tune takes its trials from; each trial is planned before it runs."""

from __future__ import annotations

from typing import Any

from ray.tune.search import Searcher

from jobs.search.space import Config, count_trials, list_precomputed_configs, propose_tpe
from jobs.search.trial_log import TrialLog
from jobs.search.trial_plan import TrialPlanner
from jobs.search.trial_record import TrialRecord
from jobs.search.tune.trial_task import TASK_KEY, TrialTask
from jobs.spec.schema import SearchSpec


class TrialProposer(Searcher):  # type: ignore[misc]  # Ray is untyped
    """Proposes the trials that have not ended, those of earlier attempts first."""

    def __init__(
        self, search: SearchSpec, planner: TrialPlanner, trial_log: TrialLog, *, run: str
    ) -> None:
        super().__init__(metric="metric", mode=search.section.direction)
        self._search, self._planner, self._trial_log = search, planner, trial_log
        self._run = run
        self._precomputed = list_precomputed_configs(search.section)
        self._count = count_trials(search.section)
        self._next_number, self._running = 0, dict[str, int]()
        self.budget_exhausted = False
        """Set when the budget is spent; no more trials are proposed then."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial that may run. A rejected one is recorded and skipped."""
        while not self._is_over():
            record = self._propose(self._next_number)
            if record is None:
                break
            self._next_number += 1
            if record.is_finished or (record.status == "waiting" and not self._has_room()):
                continue
            record, task = self._planner.plan(record)
            self._trial_log.write(record)
            if task is not None:
                self._running[trial_id] = record.number
                return {TASK_KEY: task}
        return str(Searcher.FINISHED)

    def propose_all(self) -> list[TrialTask]:
        """Return all trials that may run, for a scheduler that needs them at once."""
        tasks = []
        while isinstance(suggestion := self.suggest(f"all-{self._next_number}"), dict):
            tasks.append(suggestion[TASK_KEY])
        return tasks

    def has_unfinished(self) -> bool:
        """Return whether any trial has not ended or was never proposed."""
        records = (self._trial_log.get_record(number) for number in range(self._count))
        return any(record is None or not record.is_finished for record in records)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Free the trial's slot in the budget. TrialRecorder writes the records."""
        self._running.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the trial log is in the store."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a search resumes from its trial log."""

    def _is_over(self) -> bool:
        is_proposed = self._trial_log.get_record(self._next_number) is not None
        return (
            self.budget_exhausted
            or self._next_number >= self._count
            or not (is_proposed or self._has_room())
        )

    def _has_room(self) -> bool:
        """Return whether the budget allows another trial. Trials of earlier attempts count."""
        limit = self._search.section.budget.trials
        started = {
            record.number
            for record in self._trial_log.records
            if record.status not in ("waiting", "rejected")
        }
        return limit is None or len(started | {*self._running.values()}) < limit

    def _propose(self, number: int) -> TrialRecord | None:
        """Return the trial of that number, or None if a small space has no more."""
        known = self._trial_log.get_record(number)
        if known is not None:
            return known
        if self._precomputed is not None:
            config: Config | None = self._precomputed[number]
        else:
            config = propose_tpe(self._search.section, number, self._trial_log.records)
        if config is None:
            return None
        return self._trial_log.write(TrialRecord(number, config, run=f"{self._run}-t{number:03d}"))
