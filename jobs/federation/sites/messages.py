"""What a federation's server and its sites tell one another. Plain values: they cross processes."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.federation.averaging.flat_layout import VectorLayout


@dataclass(frozen=True)
class StagePayload:
    """What a client needs for a stage beside its weights, once. Empty for what a seed tells."""

    masks: bytes = b""
    """Masks that were chosen by scores: positions, as `pack_masks` has them."""
    inits: bytes = b""
    """Where factors start that differ from the weights, or whose A does not travel."""

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.masks) + len(self.inits)


@dataclass(frozen=True)
class ClientTask:
    """One client's part of a round."""

    stage: int
    """0 is the first."""
    round: int
    """Of the run, from 0."""
    client: int
    learning_rate: float
    weights: bytes
    """float32, in the stage's layout."""
    payload: StagePayload | None = None
    """None where the client has it."""
    residual: bytes = b""
    """Of error feedback, given back to a client whose run was resumed."""
    drops_out: bool = False
    """Rehearses a client that gets its weights, and is never heard of again."""


@dataclass(frozen=True)
class ClientUpdate:
    """What a client tells."""

    client: int
    round: int
    update: bytes
    rows: int
    """It has in all."""
    tokens: int
    """Trained on, without padding."""
    loss: float
    """Mean over its steps."""
    setup_digest: str
    """Digest of the layout and of the masks."""
    seconds: float


@dataclass(frozen=True)
class ClientFailure:
    """Why a client is left out of a round."""

    client: int
    round: int
    reason: str
    diverged: bool = False
    """Its numbers ended: a fault of the rate, not of the client."""


@dataclass(frozen=True)
class StageInfo:
    """A stage as one site has installed it."""

    layout: VectorLayout
    initial_weights: bytes
    """The weights at the stage's start, float32; what an earlier stage trained is not in them."""
    masks: bytes
    """Of the sparse stage, packed; empty where there are none."""
    setup_digest: str


@dataclass(frozen=True)
class ClientScores:
    """One client's scores, of all layers or of their rows or columns."""

    client: int
    scores: bytes
    rows: int


@dataclass(frozen=True)
class EvaluationSums:
    """A micro-batch of held-out rows, measured."""

    index: int
    loss: float
    targets: float
    correct: float
