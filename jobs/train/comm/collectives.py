"""The workers of a run: who is who, on which machine, and the one door that their tensors pass.

Every collective of the product goes through `Wire`, which counts it by stage and cause, in bytes as
the ring algorithms send them: N bytes reduced over W workers cost each of them `2 (W-1)/W N`, N
bytes gathered `(W-1)/W N` (Patarasuk and Yuan, 2009). Ranks of one machine are neighbours, so what
one worker sends is also what leaves a machine, where the group has more than one.
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
    """What one cause has cost one worker so far."""

    calls: int = 0
    bytes: int = 0
    """That this worker sent."""
    between: int = 0
    """Of these, what left its machine."""


@dataclass
class Collectives:
    """Counts, and passes on to torch. `stage` and `cause` name what goes on right now."""

    world_size: int = 1
    node_count: int = 1
    stage: str = "start"
    cause: str = BASE
    """Of what DeepSpeed does by itself: gathers of the base."""
    _traffic: dict[str, dict[str, TrafficCount]] = field(default_factory=dict)

    def all_reduce(self, tensor: Tensor, cause: str) -> Tensor:
        """The sum over all workers, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
            size = tensor.numel() * tensor.element_size()
            self.count_traffic(cause, 2 * size * (self.world_size - 1) // self.world_size)
        return tensor

    def broadcast(self, tensor: Tensor, source: int, cause: str) -> Tensor:
        """Rank `source`'s tensor on every rank, in place."""
        if self.world_size > 1:
            torch.distributed.broadcast(tensor, src=source)
            self.count_traffic(cause, tensor.numel() * tensor.element_size())
        return tensor

    def enter_stage(self, name: str) -> None:
        """Count what follows under this stage."""
        self.stage = name

    @contextmanager
    def attribute_to(self, cause: str) -> Iterator[None]:
        """Inside, gathers of the base are counted by this cause."""
        previous, self.cause = self.cause, cause
        try:
            yield
        finally:
            self.cause = previous

    def count_traffic(self, cause: str, size: int, *, spans_nodes: bool = True) -> None:
        """Adds one collective to the ledger."""
        entry = self._traffic.setdefault(self.stage, {}).setdefault(cause, TrafficCount())
        entry.calls += 1
        entry.bytes += size
        entry.between += size if spans_nodes and self.node_count > 1 else 0

    def get_traffic(self) -> dict[str, dict[str, dict[str, int]]]:
        """Calls and bytes by stage and cause."""
        return {
            stage: {cause: dict(vars(entry)) for cause, entry in causes.items()}
            for stage, causes in self._traffic.items()
        }

    def restore(self, traffic: dict[str, dict[str, dict[str, int]]]) -> None:
        """Goes on from what an earlier try has counted."""
        self._traffic = {
            stage: {cause: TrafficCount(**entry) for cause, entry in causes.items()}
            for stage, causes in traffic.items()
        }


@dataclass(frozen=True)
class WorkerContext:
    """Which worker this is, of how many, where its tensors live, and which share its machine."""

    rank: int
    world_size: int
    device: torch.device
    node_of: tuple[int, ...] = ()
    """The machine of each rank, numbered; all on one where it is empty."""
    collectives: Collectives = field(default_factory=Collectives)

    @property
    def node_count(self) -> int:
        """How many machines there are."""
        return len(set(self.node_of)) or 1

    def list_node_peers(self) -> tuple[int, ...]:
        """The ranks on this rank's machine, itself included."""
        if not self.node_of:
            return tuple(range(self.world_size))
        own_node = self.node_of[self.rank]
        return tuple(rank for rank, node in enumerate(self.node_of) if node == own_node)


def make_worker_context(
    rank: int, world_size: int, device: torch.device, *, machine: str
) -> WorkerContext:
    """This worker's team, told by the machines that all workers name. A collective."""
    machines: list[Any] = [machine] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(machines, machine)
    node_of = _index_nodes(machines)
    collectives = Collectives(world_size, node_count=len(set(node_of)))
    return WorkerContext(rank, world_size, device, node_of, collectives)


def _index_nodes(machines: Sequence[str]) -> tuple[int, ...]:
    names = list(dict.fromkeys(machines))
    return tuple(names.index(machine) for machine in machines)
