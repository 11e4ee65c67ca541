"""One run on a Ray cluster: Ray Train V2 starts the workers, and again when one dies."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from typing import Any

import ray
from ray import PlacementGroupID
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.util.placement_group import PlacementGroup

from jobs.errors import JobsError, TrainingFailed, Unreachable
from jobs.notice import NoticedTorchConfig
from jobs.request import Request
from jobs.store.runs import RunStore
from jobs.worker import CRASHES, FAILURE, train_worker

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
        # Of the spec: a federation's plan is that of one of its sites.
        needed = each * request.spec.workers
        if there.get(name, 0) < needed:
            return f"{needed} {name}s are needed, the cluster has {there.get(name, 0):g}"
    return None


def train(request: Request, runs: RunStore, *, attempt: int) -> None:
    """Runs the workers to their end. Raises TrainingFailed with one reason, whatever the number."""
    # Of an earlier try of this run, whose user has mended what it names.
    for key in (runs.key(FAILURE), *runs.store.list(runs.key(CRASHES))):
        runs.store.delete(key)
    try:
        _fitted(request, runs, attempt)
    except TrainingFailedError as failed:
        raise _reason(runs) or _unexplained(failed) from failed
    finally:
        shutil.rmtree(runs.scratch(RAY_FOLDER), ignore_errors=True)
    if (reason := _reason(runs)) is not None:
        raise reason


def _trainer(request: Request, runs: RunStore, *, name: str, attempt: int) -> TorchTrainer:
    cluster = request.spec.cluster
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    folder = runs.scratch(RAY_FOLDER)
    return TorchTrainer(
        train_worker,
        train_loop_config={"request": request, "attempt": attempt},
        scaling_config=ScalingConfig(
            num_workers=_workers(request),
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        torch_config=NoticedTorchConfig(
            backend="nccl" if cluster.gpus_per_worker else "gloo", timeout_s=cluster.timeout
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder),
            failure_config=FailureConfig(
                # Two budgets in one number: how many of them were crashes, the workers count.
                max_failures=cluster.max_failures + cluster.max_crashes,
                max_preemption_failures=-1,
                controller_failure_limit=CONTROLLER_FAILURES,
            ),
        ),
    )


def _fitted(request: Request, runs: RunStore, attempt: int) -> None:
    """Trains; a controller that died is replaced, as it keeps nothing that a run needs."""
    for start in range(CONTROLLER_FAILURES + 1):
        try:
            _trainer(request, runs, name=f"attempt-{attempt}-{start}", attempt=attempt).fit()
            return
        except RayActorError as dead:
            if start == CONTROLLER_FAILURES:
                where = "Ray Train's controller"
                raise TrainingFailed(where, f"died {start + 1} times", "See Ray's log.") from dead
            why = "Ray Train's controller died"
            runs.events.append({"event": "restarted", "time": time.time(), "why": why})
            _free_workers()


def _free_workers() -> None:
    """Gives back what a dead controller held of the cluster, which its own cleaner may not see.

    Ray's cleaner asks the State API, which finds no address where a machine has two Rays. An id of
    a placement group ends with that of the job that made it, so only this job's are taken.
    """
    job = ray.get_runtime_context().get_job_id()
    for group, told in ray.util.placement_group_table().items():
        if group.endswith(job) and told["state"] != "REMOVED":
            held = PlacementGroup(PlacementGroupID(bytes.fromhex(group)))
            ray.util.remove_placement_group(held)


def _workers(request: Request) -> int | tuple[int, int]:
    """How many workers Ray is to start: a number, or as many as there is room for."""
    asked = request.spec.cluster.workers
    return asked if isinstance(asked, int) else (asked.min, asked.max)


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
    # Of many, the one that names who was waited for; the others only waited.
    for rank, why in sorted(failures.items(), key=lambda item: "Stalled" not in str(item[1])):
        lines = [line.strip() for line in str(why).splitlines() if line.strip()]
        said = lines[-1] if lines else type(why).__name__
        remedy = "It was started again as often as cluster.max_failures allows."
        return TrainingFailed(f"worker {rank}", said.rstrip("."), remedy)
    return TrainingFailed("Ray Train", str(failed).splitlines()[-1].rstrip("."))
