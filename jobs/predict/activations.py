"""What autograd keeps between a forward and its backward, for one micro-batch on one worker.

Counted from how transformers' layers are written with SDPA attention and no checkpointing; the
benchmark `tests.benchmarks.memory` holds it to measured peaks.
"""

from __future__ import annotations

from jobs.predict.question import Question, Stage

LOSS_COPIES = 4
"""Of the logits, at the worst moment of the loss: themselves, their log-softmax, and the gradients
of both sides of it."""
FLOAT32 = 4
FULL_NORMS = 2
"""Outputs of the norms that are kept too where their weights are trained."""


def activation_bytes(asked: Question, stage: Stage) -> int:
    """Of all layers, and of what one layer's backward needs beside them."""
    tokens = asked.batching.micro * asked.batching.length
    kept = asked.base.widths.layers * (
        tokens * _kept_a_token(asked, stage) + _masks_of_attention(asked)
    )
    return kept + tokens * _transient_a_token(asked)


def logit_bytes(asked: Question) -> int:
    """Of a language model's output and its loss, where every position counts."""
    if asked.classifies:
        return 0
    tokens = asked.batching.micro * asked.batching.length
    return tokens * asked.base.widths.vocab * _copies(asked)


def _copies(asked: Question) -> int:
    # In bfloat16 the logits themselves and their gradient are half as large.
    return LOSS_COPIES * FLOAT32 if asked.dtype_bytes == FLOAT32 else (LOSS_COPIES - 1) * FLOAT32


def _kept_a_token(asked: Question, stage: Stage) -> int:
    w, size = asked.base.widths, asked.dtype_bytes
    inputs = asked.full or stage.name == "low-rank" or asked.method.inputs
    residual = 2 * w.hidden * (FLOAT32 if w.rms else size)
    norms = 2 * w.hidden if inputs else 0
    if asked.full:
        norms += FULL_NORMS * w.hidden
    attention = 4 * w.heads
    # Gated: the gate, its activation and the other side of the product; then what `down` takes in.
    inner = (3 if w.gated else w.steps - 1) * w.inner + (w.inner if inputs else 0)
    ranks = _ranks_a_layer(asked) if stage.name == "low-rank" else 0
    return residual + size * (norms + attention + inner + ranks) + FLOAT32 * w.head_count


def _ranks_a_layer(asked: Question) -> int:
    """Width of `A x` over all targets of a layer."""
    return asked.method.rank * len(asked.method.targets) // max(1, asked.base.widths.layers)


def _masks_of_attention(asked: Question) -> int:
    """On a CPU, SDPA keeps the mask of who may look at whom as numbers, in every layer."""
    length = asked.batching.length
    return asked.dtype_bytes * asked.batching.micro * length * length if asked.place.cpu else 0


def _transient_a_token(asked: Question) -> int:
    """Gradients of one MLP's width, and their copies in the layout that products want."""
    return 4 * asked.base.widths.inner * asked.dtype_bytes
