"""Tune's searcher: our proposals in their order, each planned before it may start."""

from __future__ import annotations

import dataclasses
from typing import Any

from ray.tune.search import Searcher

from jobs.inspect.model_files import digest_model
from jobs.plan.preflight import ValidatedRun
from jobs.search.space import Config, count_trials, list_precomputed_configs, propose_tpe
from jobs.search.trial_log import TrialLog
from jobs.search.trial_plan import PlannedTrial, plan_trial
from jobs.search.trial_record import TrialRecord
from jobs.search.tune.trainable import REQUEST_KEY, TrialRequest
from jobs.spec.schema import SearchSpec
from jobs.train.request import TrainingRequest


class TrialProposer(Searcher):  # type: ignore[misc]  # Ray has no types that mypy may lean on
    """Proposes what has not ended yet, in an earlier try of the search or in this one."""

    def __init__(
        self, search: SearchSpec, validated: ValidatedRun, trial_log: TrialLog, *, run: str
    ) -> None:
        super().__init__(metric="metric", mode=search.section.direction)
        self._search, self._validated, self._trial_log, self._run = (
            search,
            validated,
            trial_log,
            run,
        )
        self._precomputed = list_precomputed_configs(search.section)
        self._count = count_trials(search.section)
        self._digests = {validated.spec.model.path: digest_model(validated.model.folder)}
        self._next_number, self._running = 0, dict[str, int]()
        self.budget_exhausted = False
        """Set when the budget is spent: nothing more is proposed."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial that may run; what may not is a row of its own."""
        while not self._is_over():
            record = self._propose(self._next_number)
            if record is None:
                break
            self._next_number += 1
            if record.is_finished or (record.status == "waiting" and not self._has_room()):
                continue
            outcome = plan_trial(self._search, self._validated, record)
            if isinstance(outcome, TrialRecord):
                self._trial_log.write(outcome)
                continue
            self._trial_log.write(outcome.record)
            self._running[trial_id] = record.number
            return {REQUEST_KEY: self._make_request(outcome)}
        return str(Searcher.FINISHED)

    def propose_all(self) -> list[TrialRequest]:
        """All that may still run at once, for a scheduler that wants its population whole."""
        requests = []
        while isinstance(suggestion := self.suggest(f"all-{self._next_number}"), dict):
            requests.append(suggestion[REQUEST_KEY])
        return requests

    def has_unfinished(self) -> bool:
        """Whether any trial has not ended, or was never proposed."""
        known = (self._trial_log.get_record(number) for number in range(self._count))
        return any(record is None or not record.is_finished for record in known)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The rows are written by the watch, which is told more."""
        self._running.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the diary is in the store."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a search goes on from its diary."""

    def _is_over(self) -> bool:
        is_proposed = self._trial_log.get_record(self._next_number) is not None
        return (
            self.budget_exhausted
            or self._next_number >= self._count
            or not (is_proposed or self._has_room())
        )

    def _has_room(self) -> bool:
        """Whether the budget has another trial; one that ran when the search died has its place."""
        limit = self._search.section.budget.trials
        started = {
            record.number
            for record in self._trial_log.records
            if record.status not in ("waiting", "rejected")
        }
        return limit is None or len(started | {*self._running.values()}) < limit

    def _propose(self, number: int) -> TrialRecord | None:
        """The trial of that number; None where all of a small space was proposed."""
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

    def _make_request(self, planned_trial: PlannedTrial) -> TrialRequest:
        validated, record = planned_trial.validated, planned_trial.record
        folder = validated.model.folder
        path = validated.spec.model.path
        digest = self._digests.setdefault(path, "") or digest_model(folder)
        self._digests[path] = digest
        training = make_run_request(validated, record.run, digest, search=self._run)
        federation = planned_trial.federation
        request = training if federation is None else training.for_federation(federation)
        return TrialRequest(
            record.number,
            dict(record.config),
            request,
            self._run,
            self._search.section.evaluation_key,
        )


def make_run_request(validated: ValidatedRun, run: str, digest: str, *, search: str) -> TrainingRequest:
    """A trial's request: with checkpoints where the search looks at it."""
    train = validated.spec.train
    checkpoint_every = train.eval_every or train.checkpoint_every or 20
    spec = validated.spec.model_copy(
        update={"train": train.model_copy(update={"checkpoint_every": checkpoint_every})}
    )
    return dataclasses.replace(validated, spec=spec).make_request(
        run, base_digest=digest, search=search
    )
