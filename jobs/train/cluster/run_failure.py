"""Why the workers of a run ended without a result. No Ray, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jobs.errors import TrainingFailed
from jobs.store.runs.run_store import RunStore
from jobs.train.worker import CRASHES_PREFIX, FAILURE_FILE


def delete_failures(runs: RunStore) -> None:
    """Delete what an earlier try of this run left, after which the user fixed the cause."""
    for key in (runs.key(FAILURE_FILE), *runs.store.list(runs.key(CRASHES_PREFIX))):
        runs.store.delete(key)


def read_failure(runs: RunStore) -> TrainingFailed | None:
    """Return the error that a worker recorded because it would repeat, or None."""
    if runs.store.head(runs.key(FAILURE_FILE)) is None:
        return None
    report: dict[str, Any] = json.loads(runs.store.get(runs.key(FAILURE_FILE)))
    failure = TrainingFailed(
        f"worker {report['rank']} on {report['host']}", report["why"].rstrip(".")
    )
    failure.exit_code = int(report["exit_code"])
    return failure


def make_lost_error(failures: Mapping[int, Exception]) -> TrainingFailed:
    """Return the error of workers that failed or were lost, by rank, when no start is left."""
    # Prefer the error that names the straggler; the other workers only waited for it.
    rank = min(failures, key=lambda number: ("Stalled" not in str(failures[number]), number))
    remedy = "The limit of restarts (cluster.max_failures) is reached."
    return TrainingFailed(f"worker {rank}", describe_failure(failures[rank]).rstrip("."), remedy)


def describe_failure(failure: Exception) -> str:
    """Return the last line of an error of Ray, which holds the traceback of the worker."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return lines[-1] if lines else type(failure).__name__
