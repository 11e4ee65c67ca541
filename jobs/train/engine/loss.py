"""The loss as a sum over targets, so that any split into micro-batches and workers adds up the
same.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from jobs.train.data.collate import Batch
from jobs.train.data.model_inputs import make_model_inputs
from jobs.train.data.tokenization import IGNORE_INDEX


def compute_logits(
    model: Any, batch: Batch, *, unwrapped_model: Any = None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return logits and their labels: [m, K, V] and [m, K], or [m, C] and [m] for a classifier.

    For a language model the label at t belongs to the logits at t - 1. Of the L positions only the
    K are computed at which any row has a target: with loss on answers alone that is a third of the
    widest product in the model. `unwrapped_model` is the model itself if `model` wraps it.
    """
    inputs = make_model_inputs(unwrapped_model or model, batch, device=device)
    labels = batch.labels.to(device)
    if labels.ndim == 1:
        return model(**inputs).logits, labels
    shifted = labels[:, 1:]
    if not _has_logits_to_keep(unwrapped_model or model):
        return model(**inputs).logits[:, :-1], shifted
    positions = (shifted != IGNORE_INDEX).any(0).nonzero().squeeze(1)
    if not positions.numel():
        # A batch of filler only: compute one position, so that every rank still runs the full
        # model.
        positions = torch.zeros(1, dtype=torch.int64, device=device)
    return model(**inputs, logits_to_keep=positions).logits, shifted[:, positions]


def sum_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy in float32, in nats, summed over the labels that count."""
    is_counted = labels != IGNORE_INDEX
    return torch.nn.functional.cross_entropy(
        logits[is_counted].float(), labels[is_counted], reduction="sum"
    )


def count_correct(logits: Tensor, labels: Tensor) -> int:
    """Count the `labels` [m] of a classifier that the `logits` [m, C] rank first."""
    is_counted = labels != IGNORE_INDEX
    return int((logits[is_counted].argmax(-1) == labels[is_counted]).sum())


def _has_logits_to_keep(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters
