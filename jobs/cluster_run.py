"""One run on a Ray cluster: Ray Train V2 starts the workers, and again when one dies."""

from __future__ import annotations

import json
import logging
import os
import shutil
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from jobs.errors import JobsError, TrainingFailed, Unreachable
from jobs.request import Request
from jobs.store.runs import RunStore
from jobs.worker import FAILURE, train_worker

START_TIMEOUT_S = "180"
"""Seconds for the workers to start; Ray's own 60 are short for a machine that loads torch cold."""
CONTROLLER_FAILURES = 3
"""Ray retries its own controller for ever unless told a number."""
RAY_FOLDER = "ray"
"""Where Ray Train keeps its papers during a run; nothing is ever read back from them."""


def connect() -> None:
    """Joins the cluster that this job runs on, or starts a local Ray. Raises Unreachable."""
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_TIMEOUT_S)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    try:
        # With the dashboard: without its State API Ray never frees a dead controller's workers.
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=None
                 if os.environ.get("RAY_ADDRESS") else True)  # fmt: skip
    except ConnectionError as wrong:
        raise Unreachable(f"Ray does not answer: {wrong}. Is the cluster up?") from wrong


def missing_resources(request: Request) -> str | None:
    """What the cluster has too little of for this run right now, in words; None if nothing."""
    cluster, there = request.spec.cluster, ray.cluster_resources()
    for name, each in (("CPU", cluster.cpus_per_worker), ("GPU", cluster.gpus_per_worker)):
        needed = each * request.plan.workers
        if there.get(name, 0) < needed:
            return f"{needed} {name}s are needed, the cluster has {there.get(name, 0):g}"
    return None


def train(request: Request, runs: RunStore, *, attempt: int) -> None:
    """Runs the workers to their end. Raises TrainingFailed with one reason, whatever the number."""
    cluster = request.spec.cluster
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    # Of an earlier try of this run, whose user has mended what it names.
    runs.store.delete(runs.key(FAILURE))
    folder = runs.scratch(RAY_FOLDER)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"request": request, "attempt": attempt},
        scaling_config=ScalingConfig(
            num_workers=request.plan.workers,
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        torch_config=TorchConfig(backend="nccl" if cluster.gpus_per_worker else "gloo"),
        run_config=RunConfig(
            name=f"attempt-{attempt}",
            storage_path=str(folder),
            failure_config=FailureConfig(
                max_failures=cluster.max_failures, controller_failure_limit=CONTROLLER_FAILURES
            ),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as failed:
        raise _reason(runs) or _unexplained(failed) from failed
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if (reason := _reason(runs)) is not None:
        raise reason


def _reason(runs: RunStore) -> JobsError | None:
    if runs.store.head(runs.key(FAILURE)) is None:
        return None
    told: dict[str, Any] = json.loads(runs.store.get(runs.key(FAILURE)))
    failed = TrainingFailed(f"worker {told['rank']} on {told['host']}", told["why"].rstrip("."))
    failed.exit_code = int(told["exit_code"])
    return failed


def _unexplained(failed: TrainingFailedError) -> JobsError:
    """A worker that died without a word: killed, out of memory, or its machine lost."""
    failures = failed.worker_failures if isinstance(failed, WorkerGroupError) else {}
    for rank, why in sorted(failures.items()):
        lines = [line.strip() for line in str(why).splitlines() if line.strip()]
        said = lines[-1] if lines else type(why).__name__
        remedy = "It was started again as often as cluster.max_failures allows."
        return TrainingFailed(f"worker {rank}", said.rstrip("."), remedy)
    return TrainingFailed("Ray Train", str(failed).splitlines()[-1].rstrip("."))
