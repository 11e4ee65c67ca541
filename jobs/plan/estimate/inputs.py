"""The inputs of an estimate: one run as plain numbers, independent of the spec's keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.plan.estimate.base_tensors import BaseFacts


@dataclass(frozen=True)
class StageFacts:
    """A stage of the run."""

    name: str
    """sparse | low-rank | full"""
    steps: int | None
    """None with epochs: only the tokenized rows give the steps."""
    trained: int
    """Trained parameters, including the head."""
    exact: bool = True
    """The run cannot arrive at another number; layers that compete for rows may."""


@dataclass(frozen=True)
class MethodFacts:
    """The method's additions to the base model."""

    kind: str
    """slora | sparse | lora | full"""
    targets: Mapping[str, tuple[int, int]]
    """Shapes [out, in] by name."""
    mask_entries: Mapping[str, int]
    """Entries by target; empty without a sparse stage."""
    rank: int
    keeps_inputs: bool
    """The sparse stage keeps the full inputs of its layers for the backward."""
    keeps_residual: bool
    """The hand-off sends the residual of the update beside the factors."""
    scored: bool
    """Masks or initial factors are computed from gradients over calibration data."""
    broadcast_starts: bool
    """Initial factors are computed on one rank and broadcast, without a hand-off."""
    sketch_norm: str = "weights"
    """weights | outputs | loss: the norm of the hand-off, which needs sketches but for weights."""
    calibration_batches: int = 0
    """Batches of training data that the sketches are taken from."""
    uses_kernels: bool = False
    """The sparse stage's masks are no blocks: a kernel computes their gradients."""
    masks_factors: bool = False
    """A and B are trained under masks; the low-rank stage holds them whole beside the values."""
    head: int = 0
    """Parameters of the head, which is held in the base's type."""


@dataclass(frozen=True)
class LocalStepFacts:
    """Steps that workers take alone between two exchanges."""

    sync_every: int = 1
    """Steps from one exchange to the next."""
    momentum: bool = False
    """The outer optimizer has a momentum."""
    averages_products: bool = False
    """The products of factors are averaged, for which they are gathered."""


@dataclass(frozen=True)
class Resources:
    """The workers, and the machines that they share."""

    workers: int
    per_node: int
    cpu: bool
    memory: int | None
    """Bytes that one worker may use; None if unknown."""
    memory_source: str = ""
    """The source of that number, for messages."""
    price_per_hour: float | None = None
    """Price of one machine."""

    @property
    def nodes(self) -> int:
        """Return the number of machines."""
        return -(-self.workers // self.per_node)


@dataclass(frozen=True)
class Batching:
    """The distribution of sequences to workers."""

    sequences: int
    """Sequences of a global batch."""
    micro: int
    accumulation: int
    length: int
    """Maximum number of tokens in a sequence."""
    evaluates: bool = False
    eval_micros: int | None = None
    """Maximum micro-batches per evaluation and worker; None if the rows are not counted."""
    eval_every: int | None = None
    recomputes: bool = False
    """Each layer keeps only its input for the backward."""
    checkpoint_every: int | None = None


@dataclass(frozen=True)
class EstimateInput:
    """Everything that an estimate depends on."""

    base: BaseFacts
    method: MethodFacts
    stages: tuple[StageFacts, ...]
    resources: Resources
    batching: Batching
    dtype_bytes: int
    """Bytes per parameter of the base: 4 or 2."""
    exchange_bytes: int
    """Bytes per exchanged gradient: 4 or 2."""
    local: LocalStepFacts
    classifies: bool
    holds_masks: bool = False
    """Attention holds masks of L x L."""
    keeps_logits: bool = False
    """The loss of tokens is computed from all logits at once, not in chunks."""

    @property
    def is_full(self) -> bool:
        """Return whether all parameters are trained."""
        return self.method.kind == "full"

    @property
    def base_parameters(self) -> int:
        """Return the number of parameters of the base."""
        return self.base.parameters
