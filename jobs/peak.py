"""The most memory that each worker has held: of its GPU, or of its process."""

from __future__ import annotations

import os
import resource
from typing import Any

import torch

from jobs.team import Team

KIB = 1024


def peaks(team: Team) -> dict[str, dict[str, Any]]:
    """Each rank's peak in bytes and its host, as the ledger has them. A collective."""
    mine = {"peak": _peak(team.device), "host": os.uname().nodename}
    found: list[Any] = [mine] * team.world_size
    if team.world_size > 1:
        torch.distributed.all_gather_object(found, mine)
    return {str(rank): told for rank, told in enumerate(found)}


def _peak(device: torch.device) -> int:
    """What torch allocated on a GPU at most; on a CPU the process's resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
