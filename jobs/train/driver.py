"""The driver of a run on Ray: on warm workers if there are any, else on those of Ray Train V2."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import sys
import threading

import ray

from jobs.errors import Fault, InputError, TrainingFailed, Unreachable
from jobs.store.runs.run_store import RunStore
from jobs.train.cluster.ray_address import (
    AUTO,
    LOCAL,
    STARTING_VARIABLE,
    VARIABLE,
    check_listening,
    is_dashboard_url,
    read_ray_address,
    wait_for_starting_ray,
)
from jobs.train.cluster.run_failure import delete_failures, make_lost_error, read_failure
from jobs.train.pool.keep_warm import keep_warm
from jobs.train.pool.warm_run import run_warm
from jobs.train.request import Request, RunAttempt

START_TIMEOUT_S = "180"
"""Seconds for the workers to start; Ray's own 60 are short for a machine that loads torch cold."""
CONNECT_TIMEOUT_S = 300.0
"""Seconds to join the cluster, or to start a Ray; a busy machine needs 30."""


def connect_ray() -> None:
    """Join the cluster that this job runs on, or start a local Ray.

    Raise Unreachable, or InputError for a RAY_ADDRESS that a job can't join.
    """
    address = read_ray_address()
    if is_dashboard_url(address):
        remedy = "Submit the job there: `ray job submit -- python -m ...`, or unset RAY_ADDRESS."
        raise InputError([Fault(VARIABLE, f"{address} is the URL of a dashboard", remedy)])
    if STARTING_VARIABLE in os.environ:
        # Ray needs seconds to start: meanwhile this loads what the run will need next.
        importlib.import_module("jobs.train.cluster.ray_train")
    wait_for_starting_ray()
    if address not in ("", LOCAL, AUTO):
        check_listening(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Before Ray's own handler, which waits half a second for output that is not shown here.
    atexit.register(ray.shutdown)
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


def train_on_ray(attempt: RunAttempt, runs: RunStore) -> None:
    """Run the workers to their end. Raise TrainingFailed with one reason, whatever their number.

    Warm workers are borrowed if there are any; Ray Train starts workers otherwise, and for what is
    left of the run if a warm one was lost.
    """
    delete_failures(runs)
    cluster = attempt.request.spec.cluster
    # Two budgets in one number: the workers count how many of them were crashes.
    max_failures = cluster.max_failures + cluster.max_crashes
    warm = run_warm(attempt, runs)
    if warm is None or warm.failures:
        max_failures -= warm.count if warm else 0
        if warm and max_failures < 0:
            raise make_lost_error(warm.failures)
        _run_cold(attempt.begin_again() if warm else attempt, runs, max_failures)
    keep_warm(attempt.request)


def _run_cold(attempt: RunAttempt, runs: RunStore, max_failures: int) -> None:
    # Imported here: Ray Train takes a second and more, which a run on warm workers does without.
    from jobs.train.cluster.ray_train import run_trainer

    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_TIMEOUT_S)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    try:
        run_trainer(attempt, runs, max_failures=max_failures)
    except TrainingFailed as error:
        raise read_failure(runs) or error from error
    if (reason := read_failure(runs)) is not None:
        raise reason
