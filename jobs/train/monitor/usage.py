"""The peak memory of each worker: of its GPU, or of its process."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from jobs.train.comm.collectives import WorkerContext

KIB = 1024


def gather_memory_peaks(context: WorkerContext) -> dict[str, dict[str, Any]]:
    """Return each rank's peak in bytes and its host, for the ledger. A collective."""
    own = {"peak": _measure_peak(context.device), "host": os.uname().nodename}
    peaks: list[Any] = [own] * context.world_size
    if context.world_size > 1:
        torch.distributed.all_gather_object(peaks, own)
    return {str(rank): peak for rank, peak in enumerate(peaks)}


def reset_memory_peak(device: torch.device) -> None:
    """Forget the peak so far: a worker that has run before starts from what it still holds."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    # Not everywhere, and not allowed in each container: the peak then is that of the process.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _measure_peak(device: torch.device) -> int:
    """Return torch's peak allocation on a GPU; on a CPU the process's peak resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, StopIteration):
        # Not getrusage's figure, which a process inherits from the one that started it.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * KIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
