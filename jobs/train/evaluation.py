"""Evaluation of the model in training on held-out rows, the same for any number of workers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from jobs.errors import InputError
from jobs.train.comm.collectives import EVALUATION, Collectives
from jobs.train.engine.loss import compute_logits, count_correct, sum_loss

if TYPE_CHECKING:
    from jobs.train.data.global_batches import Feed


def evaluate(
    model: torch.nn.Module,
    feed: Feed,
    *,
    task: str,
    device: torch.device,
    collectives: Collectives | None = None,
) -> dict[str, float]:
    """Return the mean loss per target (nats), and the perplexity or accuracy. A collective.

    Raise InputError if no row has a target.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for step in feed.iter_epoch():
            for batch in step.micros:
                logits, labels = compute_logits(model, batch, device=device)
                sums[0] += float(sum_loss(logits, labels))
                sums[1] += batch.targets
                if task == "sequence-classification":
                    sums[2] += count_correct(logits, labels)
    if collectives is not None:
        # Summed in float32: NCCL and gloo both support it, and 24 bits are enough for one rank's
        # sum.
        local_sums = sums.to(device=device, dtype=torch.float32)
        sums = collectives.all_reduce(local_sums, EVALUATION).double().cpu()
    loss, targets, hits = (float(value) for value in sums)
    if not targets:
        raise InputError([feed.make_no_target_fault()])
    return compute_metrics(loss, targets, hits, task=task)


def compute_metrics(loss: float, targets: float, hits: float, *, task: str) -> dict[str, float]:
    """Return the metrics of sums over `targets` labels; a classifier ranks `hits` of them first."""
    metrics = {"loss": loss / targets}
    if task == "sequence-classification":
        return {**metrics, "accuracy": hits / targets, "rows": targets}
    # A diverged model's perplexity exceeds what a float holds.
    return {**metrics, "perplexity": math.exp(min(metrics["loss"], 700.0)), "tokens": targets}
