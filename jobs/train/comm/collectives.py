"""The workers of a run, and the collectives that all their tensors go through.

`Collectives` counts each one by stage and cause, in bytes as the ring algorithms send them: N bytes
reduced over W workers cost each of them `2 (W-1)/W N`, N bytes gathered `(W-1)/W N` (Patarasuk and
Yuan, 2009). Ranks of one machine are neighbours in the ring, so what one worker sends is also what
leaves a machine, if the group spans more than one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

GRADIENTS, BASE, EVALUATION = "gradients", "base", "evaluation"
HANDOFF, CALIBRATION, CHECKPOINT = "hand-off", "calibration", "checkpoint"
SAMPLES, INSTALL = "samples", "install"
"""The causes that bytes are counted by."""


@dataclass
class TrafficCount:
    """The cost of one cause to one worker so far."""

    calls: int = 0
    bytes: int = 0
    """Sent by this worker."""
    between: int = 0
    """The part of `bytes` that left its machine."""


@dataclass
class Collectives:
    """Passes tensors on to torch and counts them. `stage` and `cause` name the current activity."""

    world_size: int = 1
    node_count: int = 1
    stage: str = "start"
    cause: str = BASE
    """The cause of what DeepSpeed does by itself: gathers of the base."""
    _traffic: dict[str, dict[str, TrafficCount]] = field(default_factory=dict)

    def all_reduce(self, tensor: Tensor, cause: str) -> Tensor:
        """Return the sum over all workers, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
            size = tensor.numel() * tensor.element_size()
            self.count_traffic(cause, 2 * size * (self.world_size - 1) // self.world_size)
        return tensor

    def broadcast(self, tensor: Tensor, source: int, cause: str) -> Tensor:
        """Return rank `source`'s tensor on every rank, in place."""
        if self.world_size > 1:
            torch.distributed.broadcast(tensor, src=source)
            self.count_traffic(cause, tensor.numel() * tensor.element_size())
        return tensor

    def enter_stage(self, name: str) -> None:
        """Count what follows under this stage."""
        self.stage = name

    @contextmanager
    def attribute_to(self, cause: str) -> Iterator[None]:
        """Count the base's gathers inside the block under this cause."""
        previous, self.cause = self.cause, cause
        try:
            yield
        finally:
            self.cause = previous

    def count_traffic(self, cause: str, size: int, *, spans_nodes: bool = True) -> None:
        """Add one collective to the counts."""
        entry = self._traffic.setdefault(self.stage, {}).setdefault(cause, TrafficCount())
        entry.calls += 1
        entry.bytes += size
        entry.between += size if spans_nodes and self.node_count > 1 else 0

    def get_traffic(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return calls and bytes by stage and cause."""
        return {
            stage: {cause: dict(vars(entry)) for cause, entry in causes.items()}
            for stage, causes in self._traffic.items()
        }

    def restore(self, traffic: dict[str, dict[str, dict[str, int]]]) -> None:
        """Continue from the counts of an earlier try."""
        self._traffic = {
            stage: {cause: TrafficCount(**entry) for cause, entry in causes.items()}
            for stage, causes in traffic.items()
        }


@dataclass(frozen=True)
class WorkerContext:
    """This worker's rank, the number of workers, its device, and the machine of each."""

    rank: int
    world_size: int
    device: torch.device
    node_of: tuple[int, ...] = ()
    """The machine of each rank, numbered; empty means that all are on one."""
    collectives: Collectives = field(default_factory=Collectives)

    @property
    def node_count(self) -> int:
        """Return the number of machines."""
        return len(set(self.node_of)) or 1

    def list_node_peers(self) -> tuple[int, ...]:
        """Return the ranks on this rank's machine, itself included."""
        if not self.node_of:
            return tuple(range(self.world_size))
        own_node = self.node_of[self.rank]
        return tuple(rank for rank, node in enumerate(self.node_of) if node == own_node)


def make_worker_context(
    rank: int, world_size: int, device: torch.device, *, machine: str
) -> WorkerContext:
    """Return this worker's context, from the machine that each worker names. A collective."""
    machines: list[Any] = [machine] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(machines, machine)
    node_of = _index_nodes(machines)
    collectives = Collectives(world_size, node_count=len(set(node_of)))
    return WorkerContext(rank, world_size, device, node_of, collectives)


def _index_nodes(machines: Sequence[str]) -> tuple[int, ...]:
    names = list(dict.fromkeys(machines))
    return tuple(names.index(machine) for machine in machines)
