"""Run the trials of a search with Ray Tune, and publish the best one."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.errors import InputError, TrainingFailed
from jobs.search.report.pareto import find_best
from jobs.search.trial_log import TrialLog
from jobs.search.trial_plan import TrialPlanner, make_infeasible_error
from jobs.search.trial_record import TrialRecord
from jobs.search.tune.proposals import TrialProposer
from jobs.search.tune.schedulers import make_scheduler
from jobs.search.tune.trial_task import TASK_KEY, TrialTask
from jobs.search.tune.tune_callback import BudgetStopper, TrialRecorder, describe_spent_budget
from jobs.spec.schema import SearchSpec
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.request import FederationRequest, RunAttempt, TrainingRequest

TUNE_FOLDER = "tune"
"""Folder of Tune's own files during a search; nothing is read back from it."""
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Tune writes no logs and snapshots: a search resumes from its trial log."""


def run_trials(
    search: SearchSpec,
    planner: TrialPlanner,
    runs: RunStore,
    trial_log: TrialLog,
    on_change: Callable[[TrialRecord], None],
) -> None:
    """Run every trial that has not ended. Raise InputError or TrainingFailed."""
    os.environ.update(TUNE_ENVIRONMENT)
    from ray import tune

    from jobs.search.tune.trainable import TrialActor
    from jobs.search.tune.worker_group import make_bundles
    from jobs.train.driver import describe_missing_resources

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    proposer = TrialProposer(search, planner, trial_log, run=runs.run_id)
    recorder = TrialRecorder(search, trial_log, on_change)
    uses_pbt = search.section.scheduler == "pbt"
    all_tasks = proposer.propose_all() if uses_pbt else []

    def end_search(reason: str) -> None:
        recorder.end_reason, proposer.budget_exhausted = reason, True

    def get_resources(config: dict[str, Any]) -> Any:
        task: TrialTask = config[TASK_KEY]
        if (missing := describe_missing_resources(task.request)) is not None:
            print(f"trial {task.number} is waiting for the cluster: {missing}", flush=True)
        return tune.PlacementGroupFactory(make_bundles(task.request.spec.cluster))

    folder = runs.get_scratch_folder(TUNE_FOLDER)
    tuner = tune.Tuner(
        tune.with_resources(TrialActor, get_resources),
        # Tune's PBT accepts no searcher: its population exists from the start.
        param_space={TASK_KEY: tune.grid_search(all_tasks)} if uses_pbt else None,
        tune_config=tune.TuneConfig(
            search_alg=None if uses_pbt else proposer,
            scheduler=make_scheduler(search, trial_log.records),
            num_samples=1 if uses_pbt else -1,
            # Tune counts paused trials too: with a limit the population would never be complete.
            max_concurrent_trials=None if uses_pbt else _limit_concurrency(search),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(_create_folder(folder)),
            stop=BudgetStopper(search, trial_log, end_search),
            callbacks=[recorder],
            failure_config=tune.FailureConfig(max_failures=search.cluster.max_failures),
            verbose=0,
        ),
    )
    try:
        # A search that died in its last seconds has no trial left to run.
        if all_tasks or (not uses_pbt and proposer.has_unfinished()):
            tuner.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if (reason := describe_spent_budget(search, trial_log)) is not None:
        runs.events.append({"event": "budget_exhausted", "time": time.time(), "reason": reason})
        stop_unfinished(trial_log, reason, on_change)
    if find_best(trial_log.records, search.section.direction) is None:
        raise make_no_result_error(trial_log.records)


def stop_unfinished(
    trial_log: TrialLog, reason: str, on_change: Callable[[TrialRecord], None]
) -> None:
    """Record unfinished trials as stopped: Tune calls no callback when the budget is spent."""
    for record in trial_log.records:
        if not record.is_finished:
            on_change(trial_log.write(record, status="stopped", reason=reason))


def make_no_result_error(records: list[TrialRecord]) -> InputError | TrainingFailed:
    """Return the error of a search without a result: the most frequent reason of its trials."""
    reasons = [record.reason for record in records if record.reason]
    commonest = max(reasons, key=reasons.count) if reasons else "no trial was started"
    count = reasons.count(commonest)
    if records and all(record.status == "rejected" for record in records):
        return make_infeasible_error(reasons)
    remedy = f"{count} of them ended for this reason."
    return TrainingFailed(
        f"none of the {len(records)} trials has a result", commonest.rstrip("."), remedy
    )


def publish_best(planner: TrialPlanner, record: TrialRecord, *, attempt: int) -> str:
    """Commit the adapter of the best trial from its last checkpoint, and return its label."""
    from jobs.federation.federation_driver import run_federation
    from jobs.train.driver import train_on_ray

    _, task = planner.plan(record)
    assert task is not None, f"trial {record.number} was rejected after it ran"
    request = task.request
    trial_runs = RunStore(open_store(request.spec.store), record.run)
    if isinstance(request, FederationRequest):
        run_federation(request, trial_runs, attempt=attempt)
    else:
        assert isinstance(request, TrainingRequest)
        train_on_ray(RunAttempt(request, attempt), trial_runs)
    events, _ = trial_runs.events.tail(0)
    return str(
        next(event["adapter"] for event in reversed(events) if event["event"] == "published")
    )


def _limit_concurrency(search: SearchSpec) -> int:
    """Return the number of concurrent trials: the spec's, or as many as fit the cluster now."""
    import ray

    cluster, available = search.cluster, ray.cluster_resources()
    assert isinstance(cluster.workers, int)
    capacity = int(available.get("CPU", 1) // (cluster.workers * cluster.cpus_per_worker))
    if cluster.gpus_per_worker:
        capacity = min(capacity, int(available.get("GPU", 0) // cluster.workers))
    return min(search.section.max_concurrent or max(1, capacity), max(1, capacity))


def _create_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()
