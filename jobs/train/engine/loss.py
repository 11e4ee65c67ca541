"""The loss as a sum over targets, so that any split into micro-batches and workers adds up the
same. That of tokens is computed in chunks where the model allows it: see `chunked_loss`.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from jobs.spec.tasks import TargetKind
from jobs.train.data.collate import Batch
from jobs.train.data.model_inputs import make_model_inputs
from jobs.train.data.tokenization import IGNORE_INDEX
from jobs.train.engine.chunked_loss import PLAIN_LOSS, LossChoice, sum_chunked_loss

TOKEN_KINDS = ("tokens", "completion")


def compute_loss(
    model: Any,
    batch: Batch,
    choice: LossChoice = PLAIN_LOSS,
    *,
    unwrapped_model: Any = None,
    device: torch.device,
) -> Tensor:
    """Return the batch's loss, summed over its labels, a float32 scalar. `unwrapped_model` is the
    model itself if `model` wraps it.
    """
    if batch.kind in TOKEN_KINDS:
        return compute_token_loss(
            model, batch, choice, unwrapped_model=unwrapped_model, device=device
        )
    outputs = compute_logits(model, batch, unwrapped_model=unwrapped_model, device=device)
    return sum_loss(*outputs, batch.kind)


def compute_token_loss(
    model: Any,
    batch: Batch,
    choice: LossChoice,
    *,
    unwrapped_model: Any = None,
    device: torch.device,
) -> Tensor:
    """Return the loss of a batch of tokens or completions: in chunks, or from all logits."""
    if choice.is_chunked:
        inner = unwrapped_model or model
        inputs = make_model_inputs(inner, batch, device=device)
        labels = batch.labels.to(device)
        if batch.kind == "tokens":
            labels = labels[:, 1:]
        return sum_chunked_loss(model, inputs, labels, choice, unwrapped_model=inner)
    outputs = compute_logits(model, batch, unwrapped_model=unwrapped_model, device=device)
    return sum_loss(*outputs, batch.kind)


def compute_logits(
    model: Any, batch: Batch, *, unwrapped_model: Any = None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return logits and their labels: [m, K, V] and [m, K] for tokens, [m, C] and [m] for a class,
    both [m, C] for several classes, both [m] for a number.

    For a language model the label at t belongs to the logits at t - 1. Of the L positions only the
    K are computed at which any row has a target: with loss on answers alone that is a third of the
    widest product in the model. `unwrapped_model` is the model itself if `model` wraps it.
    """
    inputs = make_model_inputs(unwrapped_model or model, batch, device=device)
    labels = batch.labels.to(device)
    if batch.kind != "tokens":
        logits = model(**inputs).logits
        return logits.squeeze(-1) if batch.kind == "number" else logits, labels
    shifted = labels[:, 1:]
    if not _has_logits_to_keep(unwrapped_model or model):
        return model(**inputs).logits[:, :-1], shifted
    positions = (shifted != IGNORE_INDEX).any(0).nonzero().squeeze(1)
    if not positions.numel():
        # A batch of filler only: compute one position, so that every rank still runs the full
        # model.
        positions = torch.zeros(1, dtype=torch.int64, device=device)
    return model(**inputs, logits_to_keep=positions).logits, shifted[:, positions]


def sum_loss(logits: Tensor, labels: Tensor, kind: TargetKind = "tokens") -> Tensor:
    """Return the loss in float32, summed over the labels that count: the cross-entropy in nats, of
    each of several classes by itself; or the squared error of numbers.
    """
    is_counted = find_counted(labels, kind)
    predicted, expected = logits[is_counted].float(), labels[is_counted]
    if kind == "number":
        return torch.nn.functional.mse_loss(predicted, expected, reduction="sum")
    if kind == "classes":
        return torch.nn.functional.binary_cross_entropy_with_logits(
            predicted, expected, reduction="sum"
        )
    return torch.nn.functional.cross_entropy(predicted, expected, reduction="sum")


def find_counted(labels: Tensor, kind: TargetKind) -> Tensor:
    """Return where a prediction is asked for."""
    return ~labels.isnan() if kind == "number" else labels != IGNORE_INDEX


def _has_logits_to_keep(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters
