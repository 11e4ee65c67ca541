"""What Ray Train starts on every worker: the process group, the device, then the training."""

from __future__ import annotations

import datetime
import json
import os
from typing import Any

import ray.train

from jobs.at_hand import at_hand
from jobs.errors import AlreadyThere, InputError, JobsError, TrainingFailed
from jobs.request import Request
from jobs.store.objects import open_store
from jobs.store.runs import RunStore
from slora.errors import SloraError

FAILURE = "failure.json"
"""Written by the first worker that fails of itself: such a failure would repeat."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Nothing is fetched from a hub, and libraries keep quiet."""


def train_worker(config: dict[str, Any]) -> None:
    """One worker's life. Returns at once where an earlier try failed in a way that repeats."""
    request: Request = config["request"]
    runs = RunStore(open_store(request.spec.store), request.run_id)
    if runs.store.head(runs.key(FAILURE)) is not None:
        return
    context = ray.train.get_context()
    rank = context.get_world_rank()
    try:
        _train(at_hand(request), runs, rank, context.get_world_size(), config["attempt"])
    except (TrainingFailed, InputError, SloraError) as failure:
        # Every rank has met the same one: to end quietly spares Ray a second start of the group.
        _tell(runs, rank, failure)
    except Exception as failure:
        if not _lost_a_peer(failure):
            _tell(runs, rank, failure)
        raise


def _train(request: Request, runs: RunStore, rank: int, world_size: int, attempt: int) -> None:
    on_gpu = request.spec.cluster.gpus_per_worker > 0
    # Before the libraries below are imported, which read it. Not as Ray's runtime environment: that
    # would cost a new process a worker, four seconds each.
    os.environ.update(ENVIRONMENT, **({} if on_gpu else {"DS_ACCELERATOR": "cpu"}))
    # Here, because the driver imports this module to name the function above, and needs neither:
    # deepspeed takes seconds, and looks for accelerators where there are none.
    import torch

    from jobs.engine import distributed
    from jobs.training import Training

    if not on_gpu:
        torch.set_num_threads(request.spec.cluster.cpus_per_worker)
    device = ray.train.torch.get_device() if on_gpu else torch.device("cpu")
    distributed("nccl" if on_gpu else "gloo")
    training = Training(
        request, runs, rank=rank, world_size=world_size, device=device, attempt=attempt
    )
    training.run()


def _lost_a_peer(failure: Exception) -> bool:
    """Whether the error only says that another worker went away, which a new start may mend."""
    import torch

    if isinstance(failure, torch.distributed.DistError):
        return True
    return type(failure) is RuntimeError and "gloo" in str(failure)


def _tell(runs: RunStore, rank: int, failure: Exception) -> None:
    """Leaves the reason in the store, where the driver finds it; the first one counts."""
    ours = isinstance(failure, JobsError | SloraError)
    told = {
        "rank": rank,
        "host": os.uname().nodename,
        "time": datetime.datetime.now(datetime.UTC).isoformat(),
        "why": str(failure) if ours else f"{type(failure).__name__}: {failure}",
        "exit_code": failure.exit_code if isinstance(failure, JobsError) else 1,
    }
    try:
        runs.store.put(runs.key(FAILURE), json.dumps(told).encode(), create_only=True)
    except AlreadyThere:
        return
