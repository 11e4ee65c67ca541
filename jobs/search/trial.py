"""A training that is a trial: it shares what it can, reports its evaluations, and may be stopped.

It ends with a checkpoint instead of a commit: only the best of a search becomes an adapter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from jobs.plan.plan import StagePlan
from jobs.search.shared_cache import (
    FIRST_EVALUATION,
    MAX_SCORE_BYTES,
    SCORES,
    SPARSE_STAGE,
    SharedCache,
)
from jobs.search.tune.trial_task import TrialReport, TrialTask
from jobs.store.adapters.manifest import Manifest
from jobs.store.runs.run_store import LEDGER, RunStore
from jobs.train.data.token_cache import CachingEncoder
from jobs.train.data.tokenization import Sample
from jobs.train.engine.engine import Engine
from jobs.train.loop import FineTuner
from jobs.train.method.runner import Scores
from slora.masks.strategy import Scorer


class StoppedEarly(Exception):
    """The search wants no more of this trial."""


class SearchTrial(FineTuner):
    """One trial on one rank."""

    def __init__(
        self,
        task: TrialTask,
        *args: Any,
        search: RunStore,
        send_report: Callable[[TrialReport], bool],
        token_caches: dict[Any, dict[Any, Sample]],
        **options: Any,
    ) -> None:
        """`tell` is called on every rank after an evaluation; where it is False, the trial ends.

        `tokens`: what this process has tokenised in the trials before, by how.
        """
        super().__init__(task.request, *args, **options)
        self._task, self._shared_cache, self._send_report = task, SharedCache(search), send_report
        self._token_caches, self._new_metrics = token_caches, dict[str, float]()

    def _load(self, *, resumed: bool) -> None:
        super()._load(resumed=resumed)
        self.prompts = []
        for feed in (self.train_feed, self.eval_feed):
            if feed is not None:
                cache_key = (str(self.request.base), feed.max_length, self.request.labels)
                cache = self._token_caches.setdefault(cache_key, {})
                feed._encode = CachingEncoder(feed._encode, cache)

    def _measure(self, engine: Engine, at: str) -> dict[str, float] | None:
        if at == "before" and FIRST_EVALUATION in self._task.available:
            metrics = json.loads(
                self._shared_cache.get(FIRST_EVALUATION, self._task.keys.first_evaluation)
            )
            self.evaluations[at] = metrics
            self.recorder.record_evaluation(at, self.step, metrics, 0.0)
            return None
        measured = super()._measure(engine, at)
        if measured is not None and at == "before" and self.rank == 0:
            self._shared_cache.put(
                FIRST_EVALUATION, self._task.keys.first_evaluation, json.dumps(measured).encode()
            )
        self._new_metrics = measured or {}
        return measured

    def _after_step(self, engine: Engine, stage: StagePlan, index: int, done: int) -> None:
        self._new_metrics = {}
        super()._after_step(engine, stage, index, done)
        if self._new_metrics:
            self.saver.wait()
            if not self._send_report(
                TrialReport(self.step, self._new_metrics, self.ledger["tokens"])
            ):
                raise StoppedEarly

    def _save(self, engine: Engine, index: int, done: int, weights: Mapping[str, Tensor]) -> None:
        super()._save(engine, index, done, weights)
        key = self._task.keys.sparse_stage
        is_stage_end = (
            index == 0 and len(self.plan.stages) > 1 and done == self.plan.stages[0].steps
        )
        if (
            is_stage_end
            and key is not None
            and self.rank == 0
            and not self._shared_cache.has(SPARSE_STAGE, key)
        ):
            self.saver.wait()
            self._shared_cache.put_stage(key, self.runs, self.step, self.ledger["tokens"])

    def _scored(self, scorer: Scorer, compute: Callable[[], Scores]) -> Scores:
        key = self._task.keys.scores
        if key is not None and SCORES in self._task.available:
            cached = load(self._shared_cache.get(SCORES, key))
            # In the model's order, as they were computed: of equal scores the earlier layer wins.
            yield from ((name, cached[name]) for name in self.method.shapes)
            return
        size = 4 * self.plan.target_weights
        if key is None or size > MAX_SCORE_BYTES or self.rank:
            yield from compute()
            return
        scores = dict[str, Tensor]()
        for name, score in compute():
            scores[name] = score.contiguous()
            yield name, score
        self._shared_cache.put(SCORES, key, save(scores))

    def _commit(self, weights: Mapping[str, Tensor]) -> Manifest | None:
        self.recorder.write_json(LEDGER, self.ledger)
        return None


def make_final_report(trial: SearchTrial) -> TrialReport:
    """What a trial came to."""
    return TrialReport(trial.step, trial.evaluations["end"], trial.ledger["tokens"], ended=True)
