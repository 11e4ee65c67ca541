"""The `train` section: length, batches, learning rates, and when to stop."""

from __future__ import annotations

from typing import Literal

from jobs.spec.limits import (
    BatchSize,
    Count,
    NonNegative,
    Positive,
    ProperShare,
    Real,
    Seed,
    Steps,
    Tokens,
)
from jobs.spec.metrics import Metric
from jobs.spec.strict_model import StrictModel

HEAD_LEARNING_RATE = 1.0e-2
"""A new head learns from nothing, whatever rate its base takes. Measured: docs/guides/rates.md."""


class StopSection(StrictModel):
    """Criteria for ending before the last step."""

    tokens: Tokens | None = None
    """Token budget of both stages together; the step that reaches it is the last."""
    metric: Metric = "eval_loss"
    target: Real | None = None
    """End a stage at the evaluation (`eval_every`) where the metric is this good or better."""
    patience: Count | None = None
    """End a stage after this many evaluations in a row without an improvement."""


class TrainSection(StrictModel):
    """Length and speed of the training."""

    steps: Steps | None = None
    """Optimizer steps over both stages."""
    epochs: Count | None = None
    """Instead of `steps`: the number of passes over all rows."""
    batch_size: BatchSize = 8
    """Sequences per optimizer step, over all workers."""
    micro_batch_size: BatchSize = 2
    """Sequences that a worker holds at once; it changes memory, never the meaning of the result."""
    learning_rate: Positive = 3.0e-4
    sparse_learning_rate: Positive | None = None
    """Overrides `learning_rate` in the sparse stage."""
    head_learning_rate: Positive | None = HEAD_LEARNING_RATE
    """That of a classifier's head in all stages; null: the stage's own."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Decay of the learning rate after the warm-up; restarted in each stage."""
    warmup: ProperShare = 0.03
    """Share of a stage's steps in which the rate rises from 0."""
    weight_decay: NonNegative = 0.0
    """Decoupled decay. On a delta it pulls towards the pretrained weight, not towards zero."""
    max_grad_norm: Positive = 1.0
    seed: Seed = 0
    eval_every: Steps | None = None
    """Steps between evaluations; the start, the hand-off and the end are always evaluated."""
    checkpoint_every: Steps | None = 20
    """Steps between checkpoints, from which a run resumes when a worker dies."""
    stop: StopSection = StopSection()
