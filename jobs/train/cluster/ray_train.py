"""Training on workers that Ray Train V2 starts, and starts again when one dies."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from typing import Any

import ray
import ray.train
from ray import PlacementGroupID
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.util.placement_group import PlacementGroup

from jobs.errors import TrainingFailed
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.cluster.ray_backend import PreemptibleTorchConfig, is_preemption_requested
from jobs.train.cluster.run_failure import make_lost_error
from jobs.train.monitor.group_marks import GroupMarksCallback, begin_worker_phases
from jobs.train.request import Request, RunAttempt
from jobs.train.worker import Rank, run_rank

MAX_CONTROLLER_FAILURES = 3
"""Ray retries its own controller without end unless it is given a number."""
POLL_INTERVALS_S = (0.25, 2.0)
"""The least and the most seconds between two looks of Ray Train at its workers: a run ends that
much later. Ray's own are 2."""
POLLS_PER_S = 50
"""Workers that are looked at in a second, where there are many."""
RAY_FOLDER = "ray"
"""Ray Train's folder during a run; nothing is ever read back from it."""


def run_worker(config: dict[str, Any]) -> None:
    """Run the rank that Ray Train gave this worker."""
    context = ray.train.get_context()
    attempt: RunAttempt = config["attempt"]
    request = attempt.request
    on_gpu = request.spec.cluster.gpus_per_worker > 0
    rank = Rank(
        number=context.get_world_rank(),
        world_size=context.get_world_size(),
        machine=ray.get_runtime_context().get_node_id(),
        device=_get_device() if on_gpu else None,
        is_preemption_requested=is_preemption_requested,
    )
    if attempt.start is not None and rank.number == 0:
        runs = RunStore(open_store(request.spec.store), request.run_id)
        attempt = replace(attempt, start=begin_worker_phases(runs.phase_events, attempt.start))
    run_rank(attempt, rank)


def _get_device() -> Any:
    # Imported here: it loads torch, which the driver does not need.
    import ray.train.torch

    return ray.train.torch.get_device()


def run_trainer(attempt: RunAttempt, runs: RunStore, *, max_failures: int) -> None:
    """Train, and replace a controller that died: it holds nothing that a run needs.

    `max_failures`: starts of the workers after the first. Raise TrainingFailed.
    """
    try:
        _fit(attempt, runs, max_failures)
    except TrainingFailedError as error:
        raise _explain_failure(error) from error
    finally:
        shutil.rmtree(runs.get_scratch_folder(RAY_FOLDER), ignore_errors=True)


def _fit(attempt: RunAttempt, runs: RunStore, max_failures: int) -> None:
    poll_interval = choose_poll_interval(attempt.request.spec.workers)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(poll_interval))
    for launch in range(MAX_CONTROLLER_FAILURES + 1):
        if launch:
            attempt = attempt.begin_again()
        name = f"attempt-{attempt.number}-{launch}"
        try:
            _make_trainer(attempt, runs, name=name, max_failures=max_failures).fit()
            return
        except RayActorError as error:
            if launch == MAX_CONTROLLER_FAILURES:
                where = "Ray Train's controller"
                raise TrainingFailed(
                    where, f"died {launch + 1} times", "See Ray's logs."
                ) from error
            reason = "Ray Train's controller died"
            runs.events.append({"event": "restarted", "time": time.time(), "why": reason})
            _release_workers()


def _make_trainer(
    attempt: RunAttempt, runs: RunStore, *, name: str, max_failures: int
) -> DataParallelTrainer:
    cluster = attempt.request.spec.cluster
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    folder = runs.get_scratch_folder(RAY_FOLDER)
    return DataParallelTrainer(
        run_worker,
        train_loop_config={"attempt": attempt},
        scaling_config=ScalingConfig(
            num_workers=_get_worker_range(attempt.request),
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        backend_config=PreemptibleTorchConfig(
            backend="nccl" if cluster.gpus_per_worker else "gloo", timeout_s=cluster.timeout
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder),
            callbacks=[GroupMarksCallback()],
            failure_config=FailureConfig(
                max_failures=max_failures,
                max_preemption_failures=-1,
                controller_failure_limit=MAX_CONTROLLER_FAILURES,
            ),
        ),
    )


def choose_poll_interval(workers: int) -> float:
    """Return the seconds between two looks at so many workers."""
    least, most = POLL_INTERVALS_S
    return min(most, max(least, workers / POLLS_PER_S))


def _release_workers() -> None:
    """Release what a dead controller held of the cluster, which Ray's own cleaner may miss.

    Ray's cleaner queries the State API, which finds no address on a machine with two Rays. The id
    of a placement group ends with that of the job that made it, so only this job's are released.
    """
    job = ray.get_runtime_context().get_job_id()
    for group_id, info in ray.util.placement_group_table().items():
        if group_id.endswith(job) and info["state"] != "REMOVED":
            placement_group = PlacementGroup(PlacementGroupID(bytes.fromhex(group_id)))
            ray.util.remove_placement_group(placement_group)


def _get_worker_range(request: Request) -> int | tuple[int, int]:
    """Return how many workers Ray starts: a number, or a range to fit the cluster."""
    workers = request.spec.cluster.workers
    return workers if isinstance(workers, int) else (workers.min, workers.max)


def _explain_failure(error: TrainingFailedError) -> TrainingFailed:
    """Return the error for a worker that died without one: killed, out of memory, machine lost."""
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    if failures:
        return make_lost_error(failures)
    return TrainingFailed("Ray Train", str(error).splitlines()[-1].rstrip("."))
