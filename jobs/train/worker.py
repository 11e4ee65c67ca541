"""What every worker of a run does: set up torch, then dispatch the request. No Ray Train.

`ray_train` calls it on workers that Ray Train starts, `pool.warm_rank` on warm ones.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jobs.errors import AlreadyExists, InputError, JobsError, TrainingFailed, TrainingStalled
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.job_main import OFFLINE_QUIET
from jobs.train.localize import localize_request
from jobs.train.monitor.phases import end_phase
from jobs.train.request import EvaluationRequest, RunAttempt
from slora.errors import SloraError

if TYPE_CHECKING:
    import torch

FAILURE_FILE = "failure.json"
"""Written by the first worker with an error of its own: the run ends, as it would fail again."""
CRASHES_PREFIX = "crashes/"
"""Below it, one file for each start of the workers that ended in an error of the code."""
ENVIRONMENT = {
    **OFFLINE_QUIET,
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment of every worker."""


@dataclass(frozen=True)
class Rank:
    """The place of this process among the workers of a run, whoever started it."""

    number: int
    world_size: int
    machine: str
    """Names the machine: ranks of one machine have the same."""
    device: torch.device | None
    """None for a run on CPUs."""
    is_preemption_requested: Callable[[], bool]


def run_rank(attempt: RunAttempt, rank: Rank) -> None:
    """Run one worker. Return at once if an earlier try failed in a way that would repeat.

    The process group of all workers exists, and the phases of the run's start until then are
    recorded. Raise whatever another start may cure.
    """
    request = attempt.request
    runs = RunStore(open_store(request.spec.store), request.run_id)
    if runs.store.head(runs.key(FAILURE_FILE)) is not None:
        return
    crashes = sum(1 for _ in runs.store.list(runs.key(CRASHES_PREFIX)))
    try:
        _run_request(replace(attempt, request=localize_request(request)), runs, rank)
    except TrainingStalled as stall:
        # Treated as lost: after a hung machine, another start may succeed elsewhere.
        runs.events.append({"event": "stalled", "time": time.time(), "why": str(stall)})
        raise
    except (TrainingFailed, InputError, SloraError) as error:
        # Every rank has the same failure; returning quietly spares Ray a second start of the group.
        _record_failure(runs, FAILURE_FILE, rank.number, error)
    except Exception as error:
        if not _is_lost_peer(error):
            is_last_crash = crashes >= request.spec.cluster.max_crashes
            _record_failure(
                runs,
                FAILURE_FILE if is_last_crash else f"{CRASHES_PREFIX}{crashes}.json",
                rank.number,
                error,
            )
        raise


def _run_request(attempt: RunAttempt, runs: RunStore, rank: Rank) -> None:
    request, start = attempt.request, attempt.start
    on_gpu = request.spec.cluster.gpus_per_worker > 0
    # Set before the libraries below are imported, which read it. Not as Ray's runtime environment:
    # that would cost a new process a worker, four seconds each.
    os.environ.update(ENVIRONMENT, **({} if on_gpu else {"DS_ACCELERATOR": "cpu"}))
    # Imported here, because the driver imports this module too, and does without torch.
    import torch

    from jobs.train.allocator import tune_allocator
    from jobs.train.comm.collectives import make_worker_context
    from jobs.train.evaluate_adapters import evaluate_adapters
    from jobs.train.fine_tuning import make_fine_tuning
    from jobs.train.monitor.watchdog import Watchdog, open_default_store

    if not on_gpu:
        torch.set_num_threads(request.spec.cluster.cpus_per_worker)
        tune_allocator(
            request.spec.model.dtype, recomputes=request.spec.train.activation_checkpointing
        )
    device = rank.device or torch.device("cpu")
    context = make_worker_context(rank.number, rank.world_size, device, machine=rank.machine)
    if start is not None and rank.number == 0:
        start = end_phase(runs.phase_events, start, "imports")
    with Watchdog(rank.number, rank.world_size, open_default_store()) as watchdog:
        try:
            if isinstance(request, EvaluationRequest):
                evaluate_adapters(request, runs, context, watchdog)
                return
            make_fine_tuning(
                request,
                runs,
                context,
                attempt=attempt.number,
                hooks=attempt.make_hooks() if attempt.make_hooks else None,
                watchdog=watchdog,
                preemption_requested=rank.is_preemption_requested,
                start=start,
            ).run()
        except Exception as error:
            if _is_timeout(error):
                stragglers = watchdog.describe_stragglers()
                reason = f"waited {request.spec.cluster.timeout} s for other workers: {stragglers}"
                raise TrainingStalled(
                    f"rank {rank.number} at {watchdog.position}", reason
                ) from error
            raise


def _is_timeout(error: Exception) -> bool:
    """Return whether it is a collective's time-out: gloo and NCCL only say so in the message."""
    message = str(error).lower()
    return isinstance(error, RuntimeError) and ("timed out" in message or "timeout" in message)


def _is_lost_peer(error: Exception) -> bool:
    """Return whether the error only says that another worker is gone, which a restart may fix."""
    import torch

    if isinstance(error, torch.distributed.DistError):
        return True
    return type(error) is RuntimeError and "gloo" in str(error)


def _record_failure(runs: RunStore, file_name: str, rank: int, error: Exception) -> None:
    """Write the reason to the store for the driver; only the first one counts."""
    is_own = isinstance(error, JobsError | SloraError)
    report = {
        "rank": rank,
        "host": os.uname().nodename,
        "time": datetime.datetime.now(datetime.UTC).isoformat(),
        "why": str(error) if is_own else f"{type(error).__name__}: {error}",
        "exit_code": error.exit_code if isinstance(error, JobsError) else 1,
    }
    try:
        runs.store.put(runs.key(file_name), json.dumps(report).encode(), create_only=True)
    except AlreadyExists:
        return
