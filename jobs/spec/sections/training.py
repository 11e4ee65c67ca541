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

AUTO_RATE: Literal["auto"] = "auto"
RATE_KEYS = ("learning_rate", "sparse_learning_rate", "head_learning_rate")
"""Keys of the section that may be auto."""


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
    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward, and compute the rest of the layer again: the
    same result with a fraction of the activations' memory, in about a third more time."""
    learning_rate: Positive | Literal["auto"] = "auto"
    """Largest rate of AdamW. auto: by a rule from what is trained, its density, the task and the
    model's width, fitted on measured grids; the plan shows the number."""
    sparse_learning_rate: Positive | Literal["auto"] | None = None
    """Overrides `learning_rate` in the sparse stage. null: `learning_rate` if that is a number,
    else the rule's, as auto."""
    head_learning_rate: Positive | Literal["auto"] | None = "auto"
    """That of a classifier's head in all stages. auto: 0.02 for a new head, less above 384 wide,
    and the stage's own for the head of a tuned classifier; null: always the stage's own."""
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
