"""What Ray Train starts on every worker: the process group, the device, then the training."""

from __future__ import annotations

import datetime
import json
import math
import os
import time
from typing import Any

import ray
import ray.train

from jobs.at_hand import at_hand
from jobs.errors import AlreadyThere, InputError, JobsError, Stalled, TrainingFailed
from jobs.request import JUDGED, Request
from jobs.store.objects import open_store
from jobs.store.runs import RunStore
from slora.errors import SloraError

FAILURE = "failure.json"
"""Written by the first worker that fails of itself: the run ends, because that would repeat."""
CRASHES = "crashes/"
"""Below it, one file for each start of the workers that ended in an error of the code."""
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
    crashes = sum(1 for _ in runs.store.list(runs.key(CRASHES)))
    try:
        _train(at_hand(request), runs, rank, context.get_world_size(), config["attempt"])
    except Stalled as stalled:
        # As good as lost: a machine that hangs is worth another start, elsewhere.
        runs.events.append({"event": "stalled", "time": time.time(), "why": str(stalled)})
        raise
    except (TrainingFailed, InputError, SloraError) as failure:
        # Every rank has met the same one: to end quietly spares Ray a second start of the group.
        _tell(runs, FAILURE, rank, failure)
    except Exception as failure:
        if not _lost_a_peer(failure):
            spent = crashes >= request.spec.cluster.max_crashes
            _tell(runs, FAILURE if spent else f"{CRASHES}{crashes}.json", rank, failure)
        raise


def _train(request: Request, runs: RunStore, rank: int, world_size: int, attempt: int) -> None:
    on_gpu = request.spec.cluster.gpus_per_worker > 0
    # Before the libraries below are imported, which read it. Not as Ray's runtime environment: that
    # would cost a new process a worker, four seconds each.
    os.environ.update(ENVIRONMENT, **({} if on_gpu else {"DS_ACCELERATOR": "cpu"}))
    # Here, because the driver imports this module to name the function above, and needs neither:
    # deepspeed takes seconds, and looks for accelerators where there are none.
    import torch

    from jobs.deepspeed_wire import distributed
    from jobs.judging import judge
    from jobs.notice import noticed
    from jobs.pulse import Pulse, default_board
    from jobs.team import team_of
    from jobs.training import Training

    if not on_gpu:
        torch.set_num_threads(request.spec.cluster.cpus_per_worker)
    device = ray.train.torch.get_device() if on_gpu else torch.device("cpu")
    distributed("nccl" if on_gpu else "gloo")
    machine = ray.get_runtime_context().get_node_id()
    team = team_of(rank, world_size, device, machine=machine)
    with Pulse(rank, world_size, default_board()) as pulse:
        try:
            if request.judged:
                found = judge(request, runs, team, pulse)
                if rank == 0:
                    runs.write_json(JUDGED, {"asked": request.judging, "found": _finite(found)})
                return
            Training(request, runs, team, attempt=attempt, pulse=pulse, notice=noticed).run()
        except Exception as failure:
            if _timed_out(failure):
                why = f"waited {request.spec.cluster.timeout} s for others: {pulse.late()}"
                raise Stalled(f"rank {rank} at {pulse.place}", why) from failure
            raise


def _finite(found: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """As JSON can say it: a figure that is no number is null."""
    return {
        label: {
            rows: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            for rows, metrics in sets.items()
        }
        for label, sets in found.items()
    }


def _timed_out(failure: Exception) -> bool:
    """Whether it is a collective's time-out: gloo and NCCL say so in words only."""
    said = str(failure).lower()
    return isinstance(failure, RuntimeError) and ("timed out" in said or "timeout" in said)


def _lost_a_peer(failure: Exception) -> bool:
    """Whether the error only says that another worker went away, which a new start may mend."""
    import torch

    if isinstance(failure, torch.distributed.DistError):
        return True
    return type(failure) is RuntimeError and "gloo" in str(failure)


def _tell(runs: RunStore, part: str, rank: int, failure: Exception) -> None:
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
        runs.store.put(runs.key(part), json.dumps(told).encode(), create_only=True)
    except AlreadyThere:
        return
