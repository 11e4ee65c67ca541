"""The most memory that this worker has held: of its GPU, or of its process."""

from __future__ import annotations

import resource

import torch

KIB = 1024


def peak_memory(device: torch.device) -> int:
    """Bytes: what torch allocated on a GPU at most; on a CPU the process's resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
