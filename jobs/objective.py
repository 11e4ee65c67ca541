"""The loss as a sum over targets: any cut into micro-batches and workers adds up the same."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from jobs.data.collate import Batch
from jobs.data.tokens import IGNORED


def ask(
    model: Any, batch: Batch, *, asked_of: Any = None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Logits and the labels that they are held against: [m, K, V] and [m, K], or [m, C] and [m].

    For a language model the label at t belongs to the logits at t - 1. Of the L positions only the
    K are computed at which any row has a target: with loss on answers alone that is a third of the
    widest product in the model. `asked_of` is the model itself where `model` wraps it.
    """
    inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
    labels = batch.labels.to(device)
    if labels.ndim == 1:
        return model(**inputs).logits, labels
    shifted = labels[:, 1:]
    if not _takes_positions(asked_of or model):
        return model(**inputs).logits[:, :-1], shifted
    kept = (shifted != IGNORED).any(0).nonzero().squeeze(1)
    if not kept.numel():
        # A batch of filler alone: one position, so that every rank still runs the whole model.
        kept = torch.zeros(1, dtype=torch.int64, device=device)
    return model(**inputs, logits_to_keep=kept).logits, shifted[:, kept]


def loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in float32, in nats, summed over the labels that count."""
    counted = labels != IGNORED
    return torch.nn.functional.cross_entropy(
        logits[counted].float(), labels[counted], reduction="sum"
    )


def correct(logits: Tensor, labels: Tensor) -> int:
    """Of a classifier's `labels` [m], how many the `logits` [m, C] put first."""
    counted = labels != IGNORED
    return int((logits[counted].argmax(-1) == labels[counted]).sum())


def _takes_positions(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters
