"""What a prediction is asked about: one run, as plain numbers, free of the spec's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.plan.estimate.base_tensors import BaseFacts


@dataclass(frozen=True)
class StageFacts:
    """One stage of the run."""

    name: str
    """sparse | low-rank | full"""
    steps: int | None
    """None where only the rows, counted in tokens, can tell (epochs)."""
    trained: int
    """Numbers that are trained, the head counted."""
    exact: bool = True
    """Whether the run can't come to another number; layers that compete for rows may."""


@dataclass(frozen=True)
class MethodFacts:
    """What the method adds to the plain model."""

    kind: str
    """slora | sparse | lora | full"""
    targets: Mapping[str, tuple[int, int]]
    """[out, in] by name."""
    mask_entries: Mapping[str, int]
    """By target; empty where there is no sparse stage."""
    rank: int
    keeps_inputs: bool
    """Whether the sparse stage keeps its layers' whole inputs for the backward."""
    keeps_residual: bool
    """Whether the hand-off sends the update's rest beside the factors."""
    scored: bool
    """Whether masks or starts are taken from gradients over calibration data."""
    broadcast_starts: bool
    """Whether a start other than a hand-off's is computed on one rank and sent to all."""
    head: int = 0
    """Numbers of the head, which is held in the base's type."""


@dataclass(frozen=True)
class LocalStepFacts:
    """Steps that workers take alone between two exchanges."""

    sync_every: int = 1
    """Steps from one exchange to the next."""
    momentum: bool = False
    """Whether an outer optimiser has a momentum."""
    averages_products: bool = False
    """Whether the products of factors are averaged, for which they are gathered."""


@dataclass(frozen=True)
class Resources:
    """The workers, and the machines that they share."""

    workers: int
    per_node: int
    cpu: bool
    memory: int | None
    """Bytes that one worker may use; None where nobody knows."""
    memory_source: str = ""
    """Where that number comes from, in words."""
    price_per_hour: float | None = None
    """Of one machine."""

    @property
    def nodes(self) -> int:
        return -(-self.workers // self.per_node)


@dataclass(frozen=True)
class Batching:
    """How sequences come to a worker."""

    sequences: int
    """Of a global batch."""
    micro: int
    accumulation: int
    length: int
    """Tokens of a sequence, at most."""
    evaluates: bool = False
    eval_micros: int | None = None
    """Micro-batches of one evaluation on each worker, at most; None where nobody has counted."""
    eval_every: int | None = None
    checkpoint_every: int | None = None


@dataclass(frozen=True)
class EstimateInput:
    """Everything that a prediction follows from."""

    base: BaseFacts
    method: MethodFacts
    stages: tuple[StageFacts, ...]
    resources: Resources
    batching: Batching
    dtype_bytes: int
    """Of one number of the base: 4 or 2."""
    exchange_bytes: int
    """Of one number of the gradients on the wire: 4 or 2."""
    local: LocalStepFacts
    classifies: bool

    @property
    def is_full(self) -> bool:
        return self.method.kind == "full"

    @property
    def base_parameters(self) -> int:
        return self.base.parameters
