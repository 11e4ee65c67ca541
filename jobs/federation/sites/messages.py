"""Messages between the server of a federation and its sites: plain values, sent by pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.federation.averaging.flat_layout import VectorLayout
from jobs.train.engine.learning_rate import StepRates


@dataclass(frozen=True)
class StagePayload:
    """What a client gets once a stage beside the weights; empty for what the seed decides."""

    masks: bytes = b""
    """Positions of masks that were chosen by scores, encoded by `pack_masks`."""
    inits: bytes = b""
    """Initial factors, encoded by `pack_inits`, if the weights alone do not contain them."""

    @property
    def size(self) -> int:
        """Return the bytes of the payload."""
        return len(self.masks) + len(self.inits)


@dataclass(frozen=True)
class ClientTask:
    """One client's task in a round."""

    stage: int
    """Index in the plan, from 0."""
    round: int
    """Index in the run, from 0."""
    client: int
    rates: StepRates
    weights: bytes
    """float32, in the stage's layout."""
    payload: StagePayload | None = None
    """None if the client has it."""
    residual: bytes = b""
    """Of error feedback: returned to its client after a run was resumed."""
    drops_out: bool = False
    """Simulate a client that receives the weights and returns nothing."""


@dataclass(frozen=True)
class ClientUpdate:
    """The result of a client's task."""

    client: int
    round: int
    update: bytes
    rows: int
    """All rows of the client."""
    tokens: int
    """Tokens that it has trained on, without padding."""
    loss: float
    """Mean of its steps."""
    setup_digest: str
    """Digest of layout and masks, which must be the same on all sides."""
    seconds: float


@dataclass(frozen=True)
class ClientFailure:
    """A client that is dropped from a round, and why."""

    client: int
    round: int
    reason: str
    diverged: bool = False
    """The loss was not finite, which is due to the learning rate and not to the client."""


@dataclass(frozen=True)
class StageInfo:
    """A stage as installed at one site."""

    layout: VectorLayout
    initial_weights: bytes
    """Float32 weights at the stage's start, without what an earlier stage has trained."""
    masks: bytes
    """Masks that the site has scored itself, encoded; empty if the server can make them."""
    setup_digest: str


@dataclass(frozen=True)
class ClientScores:
    """One client's mask scores of all layers, or of their rows or columns."""

    client: int
    scores: bytes
    rows: int


@dataclass(frozen=True)
class ClientSketches:
    """One client's sums over its tokens for the hand-off, of all layers; no row is among them."""

    client: int
    sketches: bytes
    """float32, each layer's as `LayerSketch.pack` lays them out, in the masks' order."""


@dataclass(frozen=True)
class EvaluationSums:
    """The sums of one micro-batch of held-out rows."""

    index: int
    values: tuple[float, ...]
    """As `jobs.train.evaluation_sums` lays them out."""


@dataclass(frozen=True)
class CommitRecord:
    """What the manifest records of the run, beside the adapter."""

    attempt: int
    evaluations: Mapping[str, Mapping[str, float]]
    ledger: Mapping[str, Any]
