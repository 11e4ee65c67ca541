"""The most memory that each worker has held: of its GPU, or of its process."""

from __future__ import annotations

import os
import resource
from typing import Any

import torch

from jobs.train.comm.collectives import WorkerContext

KIB = 1024


def gather_memory_peaks(context: WorkerContext) -> dict[str, dict[str, Any]]:
    """Each rank's peak in bytes and its host, as the ledger has them. A collective."""
    own = {"peak": _measure_peak(context.device), "host": os.uname().nodename}
    peaks: list[Any] = [own] * context.world_size
    if context.world_size > 1:
        torch.distributed.all_gather_object(peaks, own)
    return {str(rank): peak for rank, peak in enumerate(peaks)}


def _measure_peak(device: torch.device) -> int:
    """What torch allocated on a GPU at most; on a CPU the process's resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
