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
class Sent:
    """What one cause has cost one worker so far."""

    calls: int = 0
    bytes: int = 0
    """That this worker sent."""
    between: int = 0
    """Of these, what left its machine."""


@dataclass
class Wire:
    """Counts, and passes on to torch. `stage` and `cause` name what goes on right now."""

    world_size: int = 1
    nodes: int = 1
    stage: str = "start"
    cause: str = BASE
    """Of what DeepSpeed does by itself: gathers of the base."""
    _sent: dict[str, dict[str, Sent]] = field(default_factory=dict)

    def all_reduce(self, tensor: Tensor, cause: str) -> Tensor:
        """The sum over all workers, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
            size = tensor.numel() * tensor.element_size()
            self.count(cause, 2 * size * (self.world_size - 1) // self.world_size)
        return tensor

    def broadcast(self, tensor: Tensor, source: int, cause: str) -> Tensor:
        """Rank `source`'s tensor on every rank, in place."""
        if self.world_size > 1:
            torch.distributed.broadcast(tensor, src=source)
            self.count(cause, tensor.numel() * tensor.element_size())
        return tensor

    @contextmanager
    def because(self, cause: str) -> Iterator[None]:
        """Inside, gathers of the base are counted by this cause."""
        before, self.cause = self.cause, cause
        try:
            yield
        finally:
            self.cause = before

    def count(self, cause: str, sent: int, *, spans: bool = True) -> None:
        """Adds one collective to the ledger."""
        found = self._sent.setdefault(self.stage, {}).setdefault(cause, Sent())
        found.calls += 1
        found.bytes += sent
        found.between += sent if spans and self.nodes > 1 else 0

    def ledger(self) -> dict[str, dict[str, dict[str, int]]]:
        """Calls and bytes by stage and cause."""
        return {
            stage: {cause: dict(vars(sent)) for cause, sent in causes.items()}
            for stage, causes in self._sent.items()
        }

    def restore(self, ledger: dict[str, dict[str, dict[str, int]]]) -> None:
        """Goes on from what an earlier try has counted."""
        self._sent = {
            stage: {cause: Sent(**sent) for cause, sent in causes.items()}
            for stage, causes in ledger.items()
        }


@dataclass(frozen=True)
class Team:
    """Which worker this is, of how many, where its tensors live, and which share its machine."""

    rank: int
    world_size: int
    device: torch.device
    node_of: tuple[int, ...] = ()
    """The machine of each rank, numbered; all on one where it is empty."""
    wire: Wire = field(default_factory=Wire)

    @property
    def nodes(self) -> int:
        """How many machines there are."""
        return len(set(self.node_of)) or 1

    def neighbours(self) -> tuple[int, ...]:
        """The ranks on this rank's machine, itself included."""
        if not self.node_of:
            return tuple(range(self.world_size))
        here = self.node_of[self.rank]
        return tuple(rank for rank, node in enumerate(self.node_of) if node == here)


def team_of(rank: int, world_size: int, device: torch.device, *, machine: str) -> Team:
    """This worker's team, told by the machines that all workers name. A collective."""
    machines: list[Any] = [machine] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(machines, machine)
    node_of = _numbered(machines)
    wire = Wire(world_size, nodes=len(set(node_of)))
    return Team(rank, world_size, device, node_of, wire)


def _numbered(machines: Sequence[str]) -> tuple[int, ...]:
    known = list(dict.fromkeys(machines))
    return tuple(known.index(machine) for machine in machines)
