"""The driver of a run on Ray: Ray Train V2 starts the workers, and again when one dies."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
import time
from typing import Any

import ray
from ray import PlacementGroupID
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.util.placement_group import PlacementGroup

from jobs.errors import Fault, InputError, JobsError, TrainingFailed, Unreachable
from jobs.store.runs.run_store import RunStore
from jobs.train.preemption import PreemptibleTorchConfig
from jobs.train.ray_address import (
    AUTO,
    LOCAL,
    VARIABLE,
    check_listening,
    is_dashboard_url,
    read_ray_address,
)
from jobs.train.request import HooksFactory, Request
from jobs.train.worker import CRASHES_PREFIX, FAILURE_FILE, run_worker

START_TIMEOUT_S = "180"
"""Seconds for the workers to start; Ray's own 60 are short for a machine that loads torch cold."""
CONNECT_TIMEOUT_S = 300.0
"""Seconds to join the cluster, or to start a Ray; a busy machine needs 30."""
MAX_CONTROLLER_FAILURES = 3
"""Ray retries its own controller without end unless it is given a number."""
RAY_FOLDER = "ray"
"""Ray Train's folder during a run; nothing is ever read back from it."""


def connect_ray() -> None:
    """Join the cluster that this job runs on, or start a local Ray.

    Raise Unreachable, or InputError for a RAY_ADDRESS that a job can't join.
    """
    address = read_ray_address()
    if is_dashboard_url(address):
        remedy = "Submit the job there: `ray job submit -- python -m ...`, or unset RAY_ADDRESS."
        raise InputError([Fault(VARIABLE, f"{address} is the URL of a dashboard", remedy)])
    if address not in ("", LOCAL, AUTO):
        check_listening(address)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_TIMEOUT_S)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    timer = threading.Timer(CONNECT_TIMEOUT_S, _give_up, [address])
    timer.daemon = True
    timer.start()
    try:
        # With the dashboard: without its State API Ray never frees a dead controller's workers.
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=None
                 if address not in ("", LOCAL) else True)  # fmt: skip
    except ConnectionError as error:
        raise Unreachable(f"Ray does not answer: {error}. Check that the cluster runs.") from error
    finally:
        timer.cancel()


def _give_up(address: str) -> None:
    """End this process: Ray's own wait for a cluster can't be interrupted."""
    where = f"Ray at {address}" if address else "Ray"
    print(
        f"{where} did not answer within {CONNECT_TIMEOUT_S:.0f} s. Check that the cluster runs.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(Unreachable.exit_code)


def describe_missing_resources(request: Request) -> str | None:
    """Return which resource the cluster lacks for this run at present, or None."""
    cluster, available = request.spec.cluster, ray.cluster_resources()
    for name, per_worker in (("CPU", cluster.cpus_per_worker), ("GPU", cluster.gpus_per_worker)):
        # Read the spec: a federation's plan is that of one of its sites.
        needed = per_worker * request.spec.workers
        if available.get(name, 0) < needed:
            return f"the run needs {needed} {name}s, but the cluster has {available.get(name, 0):g}"
    return None


def train_on_ray(
    request: Request, runs: RunStore, *, attempt: int, make_hooks: HooksFactory | None = None
) -> None:
    """Run the workers to their end. Raise TrainingFailed with one reason, whatever their number."""
    # Left by an earlier try of this run, after which the user fixed the cause.
    for key in (runs.key(FAILURE_FILE), *runs.store.list(runs.key(CRASHES_PREFIX))):
        runs.store.delete(key)
    try:
        _run_trainer(request, runs, attempt, make_hooks)
    except TrainingFailedError as error:
        raise _read_failure(runs) or _explain_failure(error) from error
    finally:
        shutil.rmtree(runs.get_scratch_folder(RAY_FOLDER), ignore_errors=True)
    if (reason := _read_failure(runs)) is not None:
        raise reason


def _make_trainer(
    request: Request, runs: RunStore, *, name: str, attempt: int, make_hooks: HooksFactory | None
) -> TorchTrainer:
    cluster = request.spec.cluster
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    folder = runs.get_scratch_folder(RAY_FOLDER)
    return TorchTrainer(
        run_worker,
        train_loop_config={"request": request, "attempt": attempt, "make_hooks": make_hooks},
        scaling_config=ScalingConfig(
            num_workers=_get_worker_range(request),
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        torch_config=PreemptibleTorchConfig(
            backend="nccl" if cluster.gpus_per_worker else "gloo", timeout_s=cluster.timeout
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder),
            failure_config=FailureConfig(
                # Two budgets in one number: the workers count how many of them were crashes.
                max_failures=cluster.max_failures + cluster.max_crashes,
                max_preemption_failures=-1,
                controller_failure_limit=MAX_CONTROLLER_FAILURES,
            ),
        ),
    )


def _run_trainer(
    request: Request, runs: RunStore, attempt: int, make_hooks: HooksFactory | None
) -> None:
    """Train, and replace a controller that died: it holds nothing that a run needs."""
    for launch in range(MAX_CONTROLLER_FAILURES + 1):
        try:
            _make_trainer(
                request,
                runs,
                name=f"attempt-{attempt}-{launch}",
                attempt=attempt,
                make_hooks=make_hooks,
            ).fit()
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


def _read_failure(runs: RunStore) -> JobsError | None:
    if runs.store.head(runs.key(FAILURE_FILE)) is None:
        return None
    report: dict[str, Any] = json.loads(runs.store.get(runs.key(FAILURE_FILE)))
    failure = TrainingFailed(
        f"worker {report['rank']} on {report['host']}", report["why"].rstrip(".")
    )
    failure.exit_code = int(report["exit_code"])
    return failure


def _explain_failure(error: TrainingFailedError) -> JobsError:
    """Return the error for a worker that died without one: killed, out of memory, machine lost."""
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    # Prefer the error that names the straggler; the other workers only waited for it.
    for rank, failure in sorted(failures.items(), key=lambda item: "Stalled" not in str(item[1])):
        lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
        message = lines[-1] if lines else type(failure).__name__
        remedy = "The limit of restarts (cluster.max_failures) is reached."
        return TrainingFailed(f"worker {rank}", message.rstrip("."), remedy)
    return TrainingFailed("Ray Train", str(error).splitlines()[-1].rstrip("."))
