"""One rank of a run on a warm worker."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import ray

from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.comm.rendezvous import find_free_address, join_process_group
from jobs.train.monitor.phases import end_phase
from jobs.train.preemption import SIGTERM
from jobs.train.request import RunAttempt
from jobs.train.worker import Rank, run_rank

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RankSetup:
    """Where a rank stands in its run."""

    number: int
    world_size: int
    local_number: int
    """Among the ranks of its node."""
    timeout_s: float
    gpus: Sequence[str] = ()
    """Ids of the GPUs of the run on this node; empty for a run on CPUs."""
    gpus_per_worker: int = 0


class WarmRank:
    """The object that a warm worker holds for a run."""

    def __init__(self, setup: RankSetup) -> None:
        self._setup, self._is_draining = setup, threading.Event()
        if setup.gpus:
            # Nothing has asked CUDA for a device in this process yet.
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(setup.gpus)

    def find_free_address(self) -> str:
        """Return a free host:port of this node, for the process group."""
        return find_free_address()

    def warn(self) -> None:
        """Note that Ray drains a machine of this run."""
        self._is_draining.set()

    def run(self, address: str, attempt: RunAttempt) -> None:
        """Run this rank to its end. A collective."""
        setup = self._setup
        device = None
        if setup.gpus:
            device = self._open_device()
        join_process_group(
            address,
            setup.number,
            setup.world_size,
            local_rank=setup.local_number,
            gpu=bool(setup.gpus),
            timeout_s=setup.timeout_s,
        )
        rank = Rank(
            number=setup.number,
            world_size=setup.world_size,
            machine=ray.get_runtime_context().get_node_id(),
            device=device,
            is_preemption_requested=lambda: SIGTERM.is_set() or self._is_draining.is_set(),
        )
        if attempt.start is not None and setup.number == 0:
            request = attempt.request
            runs = RunStore(open_store(request.spec.store), request.run_id)
            start = end_phase(runs.phase_events, attempt.start, "processes")
            attempt = replace(attempt, start=start)
        run_rank(attempt, rank)

    def _open_device(self) -> torch.device:
        """Return the GPU of this rank. Raise RuntimeError if this process can't use it."""
        import torch

        device = torch.device("cuda", self._setup.local_number * self._setup.gpus_per_worker)
        torch.cuda.set_device(device)
        torch.zeros(1, device=device)
        return device
