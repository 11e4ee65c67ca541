"""The trainable of Ray Tune: one evaluation per step, with its state in our own checkpoints.

It is a class and not a function because Tune reuses its actor for the next trial, and so its
workers: they have imported torch and start a trial in a second. Tune saves a copy of the newest
checkpoint of the run, which depends on no world size; another trial may continue from it (PBT).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayError

from jobs.errors import JobsError
from jobs.search.shared_cache import (
    FIRST_EVALUATION,
    SCORES,
    SPARSE_STAGE,
    SharedCache,
    count_reused_tokens,
)
from jobs.search.tune.trial_task import TASK_KEY, TrialReport, TrialTask, reject_nonfinite_metric
from jobs.search.tune.worker_group import TrialWorkerGroup, TrialWorkerLost
from jobs.spec.sections.cluster import ClusterSection
from jobs.store.open import open_store
from jobs.store.runs.run_store import (
    CHECKPOINT_STATE,
    CHECKPOINT_TENSORS,
    LOW_RANK_INIT,
    MASKS,
    RunStore,
)

STATE_FILES = (MASKS, LOW_RANK_INIT)
"""Files of a run that a checkpoint needs beside it."""


class TrialActor(tune.Trainable):  # type: ignore[misc]  # Ray is untyped
    """Runs trials one after another, with the same workers where possible."""

    _task: TrialTask
    _cluster: ClusterSection
    _runs: RunStore
    _search: RunStore
    _started: bool
    _lost_workers: int
    """Workers that died in this trial."""
    _reused: tuple[str, ...]
    """Results of other trials that this one has used."""
    _reused_tokens: int
    """Tokens of a sparse stage that another trial has trained."""

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare the first trial of this actor; called by Tune."""
        self._workers: TrialWorkerGroup | None = None
        self._load_task(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Stop what still runs of the last trial, and prepare another; called by Tune."""
        if self._workers is not None:
            self._workers.stop_trial()
        self._load_task(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Return the next evaluation or the end. Up to max_failures lost workers are replaced."""
        cluster = self._task.request.spec.cluster
        while True:
            try:
                return self._make_result(self._wait_for_report())
            except TrialWorkerLost as error:
                self._lost_workers += 1
                self._started = False
                if self._lost_workers > cluster.max_failures:
                    return self._make_result(TrialReport(ended=True, failure=str(error)))
            except (JobsError, RayError) as failure:
                # Tune would restart the trial without a reason; the failure ends this trial only.
                self.cleanup()
                message = " ".join(str(failure).split())[:500]
                return self._make_result(TrialReport(ended=True, failure=message))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Copy the newest checkpoint. The workers wait for the scheduler's decision meanwhile."""
        folder, step = Path(checkpoint_dir), max(self._runs.list_checkpoint_steps(), default=None)
        if step is None:
            return
        for name in (CHECKPOINT_TENSORS, CHECKPOINT_STATE):
            (folder / name).write_bytes(self._runs.store.get(self._runs.checkpoint_key(step, name)))
        (folder / "step").write_text(str(step))
        for name in STATE_FILES:
            if self._runs.store.head(self._runs.key(name)) is not None:
                (folder / name).write_bytes(self._runs.store.get(self._runs.key(name)))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Make a checkpoint of this or another trial the newest one of the run."""
        folder = Path(checkpoint_dir)
        if self._workers is not None:
            self._workers.stop_trial()
        self._started = False
        if not (folder / "step").exists():
            return
        step = int((folder / "step").read_text())
        for old in self._runs.list_checkpoint_steps():
            if old > step:
                for name in (CHECKPOINT_STATE, CHECKPOINT_TENSORS):
                    self._runs.store.delete(self._runs.checkpoint_key(old, name))
        for name in STATE_FILES:
            if (folder / name).exists():
                self._runs.store.put(self._runs.key(name), (folder / name).read_bytes())
        for name in (CHECKPOINT_TENSORS, CHECKPOINT_STATE):
            key = self._runs.checkpoint_key(step, name)
            self._runs.store.put(key, (folder / name).read_bytes())

    def cleanup(self) -> None:
        """Stop the workers; called by Tune when it ends this actor."""
        if self._workers is not None:
            self._workers.close()

    def _load_task(self, config: Mapping[str, Any]) -> None:
        task: TrialTask = config[TASK_KEY]
        if self._workers is not None and task.request.spec.cluster != self._cluster:
            self._workers.close()
            self._workers = None
        self._task, self._started, self._lost_workers = task, False, 0
        self._cluster = task.request.spec.cluster
        store = open_store(task.request.spec.store)
        self._runs = RunStore(store, task.request.run_id)
        self._search = RunStore(store, task.search)
        self._reused, self._reused_tokens = (), 0

    def _wait_for_report(self) -> TrialReport:
        if self._workers is None:
            self._workers = TrialWorkerGroup(self._cluster)
        if self._started:
            self._workers.continue_trial()
        else:
            self._workers.start_trial(self._find_available())
            self._started = True
        received = self._workers.wait_for_report()
        report = reject_nonfinite_metric(received, self._task.metric)
        if received.ended:
            self._workers.finish_trial(received)
        elif report.ended:
            self._workers.stop_trial()
        return report

    def _find_available(self) -> TrialTask:
        """Return the task with the shared results that exist; a sparse stage is restored here."""
        keys, cache = self._task.keys, SharedCache(self._search)
        available = set[str]()
        # A trial that resumes has these in its own checkpoint.
        if not self._runs.list_checkpoint_steps():
            shared = {FIRST_EVALUATION: keys.first_evaluation, SCORES: keys.scores}
            available = {kind for kind, key in shared.items() if cache.has(kind, key)}
            if keys.sparse_stage is not None and cache.has(SPARSE_STAGE, keys.sparse_stage):
                cache.restore_stage(keys.sparse_stage, self._runs)
                available = {SPARSE_STAGE, FIRST_EVALUATION}
        self._reused_tokens = count_reused_tokens(self._runs)
        donor = self._task.donor
        state = [] if donor is None else [f"state of trial {donor}"]
        self._reused = tuple(dict.fromkeys((*self._reused, *sorted(available), *state)))
        return replace(self._task, available=frozenset(available))

    def _make_result(self, report: TrialReport) -> dict[str, Any]:
        tokens = max(0, report.tokens - self._reused_tokens)
        report = replace(report, tokens=tokens, reused=self._reused)
        result = {"report": report, "step": report.step, "done": report.ended}
        # A trial that failed has no metric, and Tune accepts a result without one.
        metric = report.metrics.get(self._task.metric)
        return result if metric is None else {**result, "metric": metric}
