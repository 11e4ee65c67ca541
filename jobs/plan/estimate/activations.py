"""Memory that autograd keeps between forward and backward, for one micro-batch on one worker.

Counted from the code of transformers' layers with SDPA attention; the
benchmark `tests.benchmarks.memory` compares it with measured peaks.
"""

from __future__ import annotations

from jobs.plan.estimate.inputs import EstimateInput, StageFacts

LOSS_CHUNK = {"cpu": 72 << 20, "gpu": 256 << 20}
"""Upper bound of the bytes of a chunk's logits in the loss, in float32: few beside the activations,
and enough rows for the matrix products. On a CPU a piece of more than 32 MB returns to the system
at once, and leaves no holes in the heap; half of a chunk still is one.
"""
CHUNK_COPIES = 2
"""Copies of a chunk's logits: logits and log-softmax, which becomes the gradient in place."""
LOSS_COPIES = 4
"""Copies of the logits at the peak of a loss that is one chunk: logits, log-softmax and both
gradients."""
PLAIN_COPIES = 3
"""Copies in float32 of all logits at the peak of a loss that is not computed in chunks: log-softmax
and both gradients, in either type of the base. Counted in `tests/jobs/train/test_plain_loss.py`."""
FLOAT32 = 4
FULL_NORMS = 2
"""Outputs of the norms that are kept if their weights are trained."""


def estimate_activations(inputs: EstimateInput, stage: StageFacts) -> int:
    """Return the bytes of all layers' activations and one layer's temporaries."""
    tokens, widths = inputs.batching.micro * inputs.batching.length, inputs.base.widths
    layer = tokens * _count_saved_per_token(inputs, stage) + _count_attention_mask_bytes(inputs)
    transient = tokens * _count_transient_per_token(inputs)
    if inputs.batching.recomputes:
        return widths.layers * tokens * widths.hidden * inputs.dtype_bytes + layer + transient
    return widths.layers * layer + transient


def estimate_logits(inputs: EstimateInput) -> int:
    """Return the bytes of a language model's logits and loss: of a chunk, if there are more and the
    model lets its loss be computed in chunks.
    """
    if inputs.classifies:
        return 0
    tokens, widths = inputs.batching.micro * inputs.batching.length, inputs.base.widths
    chunk = LOSS_CHUNK["cpu" if inputs.resources.cpu else "gpu"]
    chunks = -(-tokens * widths.vocab * FLOAT32 // chunk)
    if chunks > 1 and inputs.keeps_logits:
        return PLAIN_COPIES * FLOAT32 * tokens * widths.vocab
    if chunks <= 1:
        return tokens * widths.vocab * _count_logit_bytes_per_token(inputs)
    # The hidden states of the targets, and their gradient; a trained projection's gradient too.
    hidden = 2 * tokens * widths.hidden * inputs.dtype_bytes
    # The latter twice: as the forward has summed it, and scaled by the backward.
    projection = 2 * widths.vocab * widths.hidden * FLOAT32 if inputs.is_full else 0
    # In bfloat16 the logits and their gradient are rounded beside both.
    copies = CHUNK_COPIES if inputs.dtype_bytes == FLOAT32 else CHUNK_COPIES + 1
    return copies * (tokens * widths.vocab * FLOAT32 // chunks) + hidden + projection


def _count_logit_bytes_per_token(inputs: EstimateInput) -> int:
    # In bfloat16 the logits themselves and their gradient are half as large.
    return LOSS_COPIES * FLOAT32 if inputs.dtype_bytes == FLOAT32 else (LOSS_COPIES - 1) * FLOAT32


def _count_saved_per_token(inputs: EstimateInput, stage: StageFacts) -> int:
    widths, size = inputs.base.widths, inputs.dtype_bytes
    keeps_inputs = inputs.is_full or stage.name == "low-rank" or inputs.method.keeps_inputs
    residual = 2 * widths.hidden * (FLOAT32 if widths.rms else size)
    norms = 2 * widths.hidden if keeps_inputs else 0
    if inputs.is_full:
        norms += FULL_NORMS * widths.hidden
    attention = 4 * widths.heads_width
    # Gated: the gate, its activation and the other factor of the product; then the input of `down`.
    inner = (3 if widths.gated else widths.activation_copies - 1) * widths.inner + (
        widths.inner if keeps_inputs else 0
    )
    ranks = _count_ranks_per_layer(inputs) if stage.name == "low-rank" else 0
    return residual + size * (norms + attention + inner + ranks) + FLOAT32 * widths.head_count


def _count_ranks_per_layer(inputs: EstimateInput) -> int:
    """Count the entries of `A x` per token, over all targets of a layer."""
    return inputs.method.rank * len(inputs.method.targets) // max(1, inputs.base.widths.layers)


def _count_attention_mask_bytes(inputs: EstimateInput) -> int:
    """Count the bytes of the attention masks, which SDPA keeps in every layer on a CPU; none where
    attention is computed within each row."""
    if not (inputs.holds_masks and inputs.resources.cpu):
        return 0
    return inputs.dtype_bytes * inputs.batching.micro * inputs.batching.length**2


def _count_transient_per_token(inputs: EstimateInput) -> int:
    """Count the gradients of one MLP and their copies in the layout that matrix products need."""
    return 4 * inputs.base.widths.inner * inputs.dtype_bytes
