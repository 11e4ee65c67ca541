"""Run a fine-tuning as a trial: share results with other trials, report evaluations, stop early.

A trial ends with a checkpoint instead of a commit: only the best of a search becomes an adapter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from safetensors.torch import load, save
from torch import Tensor

from jobs.search.shared_cache import (
    FIRST_EVALUATION,
    MAX_SCORE_BYTES,
    SCORES,
    SPARSE_STAGE,
    SharedCache,
)
from jobs.search.tune.trial_task import TrialReport, TrialTask
from jobs.store.adapters.manifest import Manifest
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.comm.collectives import WorkerContext
from jobs.train.fine_tuning import make_fine_tuning
from jobs.train.hooks import CheckpointReport, EvaluationReport, RunHooks, Scores
from jobs.train.loop import StageLoop
from jobs.train.monitor.phases import PhaseStart
from jobs.train.request import TrainingRequest
from slora.masks.strategy import Scorer

SendReport = Callable[[TrialReport], bool]
"""Sends a report on every rank, and returns whether the trial continues."""


def run_trial(
    task: TrialTask,
    context: WorkerContext,
    *,
    send_report: SendReport,
) -> TrialReport:
    """Run a trial on this rank, from its newest checkpoint to its end."""
    assert isinstance(task.request, TrainingRequest)
    store = open_store(task.request.spec.store)
    runs = RunStore(store, task.request.run_id)
    hooks = TrialHooks(task, runs, rank=context.rank, send_report=send_report)
    # A trial's wait begins when its workers get it: they wait for no queue and no process.
    start = PhaseStart.begin(attempt=0)
    loop = make_fine_tuning(task.request, runs, context, hooks=hooks, start=start)
    loop.run()
    return make_final_report(loop)


def make_final_report(loop: StageLoop) -> TrialReport:
    """Return the report of a trial that has reached its end."""
    tokens = loop.trainer.ledger["tokens"]
    return TrialReport(loop.step, loop.evaluations["end"], tokens, ended=True)


class TrialHooks(RunHooks):
    """The hooks of one trial on one rank."""

    # The scheduler's decision may take the checkpoint of an evaluation to another trial.
    wait_for_checkpoints = True
    generates_samples = False

    def __init__(
        self, task: TrialTask, runs: RunStore, *, rank: int, send_report: SendReport
    ) -> None:
        self._task, self._runs, self._rank = task, runs, rank
        self._cache, self._send_report = SharedCache(RunStore(runs.store, task.search)), send_report

    def load_evaluation(self, name: str) -> dict[str, float] | None:
        """Return the evaluation of the base if another trial has made it."""
        if name != "before" or FIRST_EVALUATION not in self._task.available:
            return None
        metrics: dict[str, float] = json.loads(
            self._cache.get(FIRST_EVALUATION, self._task.keys.first_evaluation)
        )
        return metrics

    def on_evaluation(self, report: EvaluationReport) -> bool:
        """Share the evaluation of the base, and report the periodic ones to the search."""
        if report.name == "before" and self._rank == 0:
            metrics = json.dumps(dict(report.metrics)).encode()
            self._cache.put(FIRST_EVALUATION, self._task.keys.first_evaluation, metrics)
        if not report.is_periodic:
            return True
        return self._send_report(TrialReport(report.step, report.metrics, report.tokens))

    def on_checkpoint(self, report: CheckpointReport) -> None:
        """Share the checkpoint at the end of a sparse stage that another stage follows."""
        key = self._task.keys.sparse_stage
        ends_first = report.is_stage_end and report.stage_index == 0
        if not ends_first or len(self._task.request.plan.stages) == 1 or self._rank:
            return
        if key is not None and not self._cache.has(SPARSE_STAGE, key):
            self._cache.put_stage(key, self._runs, report.step, report.tokens)

    def compute_scores(
        self, scorer: Scorer, shapes: Mapping[str, tuple[int, int]], compute: Callable[[], Scores]
    ) -> Scores:
        """Yield the scores of the layers, from another trial if it has shared them."""
        key = self._task.keys.scores
        if key is not None and SCORES in self._task.available:
            cached = load(self._cache.get(SCORES, key))
            # In the order of the model, as computed: of equal scores the earlier layer wins.
            yield from ((name, cached[name]) for name in shapes)
            return
        size = 4 * self._task.request.plan.target_weights
        if key is None or size > MAX_SCORE_BYTES or self._rank:
            yield from compute()
            return
        scores = dict[str, Tensor]()
        for name, score in compute():
            scores[name] = score.contiguous()
            yield name, score
        self._cache.put(SCORES, key, save(scores))

    def commit(self, publish: Callable[[], Manifest]) -> Manifest | None:
        """Commit nothing: the checkpoints of a trial are its result."""
        return None
