"""A trial as Ray Tune sees it: one evaluation a step, its state in our own checkpoints.

A class and not a function, because Tune keeps its actor for the next trial, and with it the crew:
workers that have imported torch start a trial in a second. What Tune saves is a copy of the run's
newest checkpoint, free of world size, which another trial may go on from (PBT).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    compute_sharing_keys,
    count_reused_tokens,
)
from jobs.search.tune.trial_task import TrialReport, TrialTask, reject_nonfinite_metric
from jobs.search.tune.worker_group import TrialWorkerGroup, TrialWorkerLost
from jobs.spec.schema import ClusterSection
from jobs.store.base import open_store
from jobs.store.runs.run_store import (
    CHECKPOINT_STATE,
    CHECKPOINT_TENSORS,
    LOW_RANK_INIT,
    MASKS,
    RunStore,
)
from jobs.train.request import AdapterRequest

REQUEST_KEY = "asked"
"""The one key of Tune's config: a trial's Asked, pickled by Ray."""
STATE_FILES = (MASKS, LOW_RANK_INIT)
"""What a state needs beside its checkpoint."""


@dataclass(frozen=True)
class TrialRequest:
    """One trial, as the driver hands it over."""

    number: int
    config: Mapping[str, Any]
    """The searched keys and their values."""
    request: AdapterRequest
    search: str
    metric: str
    donor: int | None = None
    """The trial whose state this one took over (PBT)."""


class TrialActor(tune.Trainable):  # type: ignore[misc]  # Ray has no types that mypy may lean on
    """Runs trials one after another, each with the crew of the one before."""

    _request: TrialRequest
    _cluster: ClusterSection
    _runs: RunStore
    _search: RunStore
    _started: bool
    _lost_workers: int
    """Workers that died in this trial."""
    _reused: tuple[str, ...]
    """What the trial took over instead of doing it."""
    _reused_tokens: int
    """Tokens that came with a sparse stage which another trial had trained."""

    def setup(self, config: dict[str, Any]) -> None:
        """Called by Tune for the first trial of this actor."""
        self._workers: TrialWorkerGroup | None = None
        self._load_request(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Called by Tune for another trial: what still runs of the last one is stopped."""
        if self._workers is not None:
            self._workers.stop_trial()
        self._load_request(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """The next evaluation, or the end. A worker that dies is replaced a few times."""
        cluster = self._request.request.spec.cluster
        while True:
            try:
                return self._make_result(self._wait_for_report())
            except TrialWorkerLost as error:
                self._lost_workers += 1
                self._started = False
                if self._lost_workers > cluster.max_failures:
                    return self._make_result(TrialReport(0, {}, 0, ended=True, failure=str(error)))
            except (JobsError, RayError) as failure:
                # Tune would start the trial again, and tell nobody why; it is one row's end.
                self.cleanup()
                message = " ".join(str(failure).split())[:500]
                return self._make_result(TrialReport(0, {}, 0, ended=True, failure=message))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A copy of the newest checkpoint; the crew waits for the search's verdict meanwhile."""
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
        """What another trial saved, or this one: the run's newest checkpoint from now on."""
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
        """Called by Tune when it ends this actor."""
        if self._workers is not None:
            self._workers.close()

    def _load_request(self, config: Mapping[str, Any]) -> None:
        request: TrialRequest = config[REQUEST_KEY]
        if self._workers is not None and request.request.spec.cluster != self._cluster:
            self._workers.close()
            self._workers = None
        self._request, self._started, self._lost_workers = request, False, 0
        self._cluster = request.request.spec.cluster
        store = open_store(request.request.spec.store)
        self._runs = RunStore(store, request.request.run_id)
        self._search = RunStore(store, request.search)
        self._reused, self._reused_tokens = (), 0

    def _wait_for_report(self) -> TrialReport:
        if self._workers is None:
            self._workers = TrialWorkerGroup(self._cluster)
        if self._started:
            self._workers.continue_trial()
        else:
            self._workers.start_trial(self._make_task())
            self._started = True
        received = self._workers.wait_for_report()
        report = reject_nonfinite_metric(received, self._request.metric)
        if received.ended:
            self._workers.finish_trial(received)
        elif report.ended:
            self._workers.stop_trial()
        return report

    def _make_task(self) -> TrialTask:
        request, cache = self._request.request, SharedCache(self._search)
        keys = compute_sharing_keys(request)
        available = set[str]()
        # A trial that goes on finds these in its own checkpoint.
        if not self._runs.list_checkpoint_steps():
            available |= (
                {FIRST_EVALUATION} if cache.has(FIRST_EVALUATION, keys.first_evaluation) else set()
            )
            available |= {SCORES} if cache.has(SCORES, keys.scores) else set()
            if keys.sparse_stage is not None and cache.has(SPARSE_STAGE, keys.sparse_stage):
                cache.restore_stage(keys.sparse_stage, self._runs)
                available = {SPARSE_STAGE, FIRST_EVALUATION}
        self._reused_tokens = count_reused_tokens(self._runs)
        donor = self._request.donor
        state = [] if donor is None else [f"state of trial {donor}"]
        self._reused = tuple(dict.fromkeys((*self._reused, *sorted(available), *state)))
        return TrialTask(
            request, self._request.search, self._request.metric, keys, frozenset(available)
        )

    def _make_result(self, report: TrialReport) -> dict[str, Any]:
        result = report.to_result()
        # Under a name of its own: a trial that failed has measured nothing, and Tune wants none.
        metric = report.metrics.get(self._request.metric)
        objective = {} if metric is None else {"metric": metric}
        tokens = max(0, report.tokens - self._reused_tokens)
        extra = {"tokens": tokens, "taken": self._reused, "done": report.ended}
        return {**result, **objective, **extra}
