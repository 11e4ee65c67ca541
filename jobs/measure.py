"""Evaluation: the held-out rows through the model as it is trained, the same for any world size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from jobs.errors import InputError
from jobs.objective import ask, correct, loss_sum
from jobs.team import EVALUATION, Wire

if TYPE_CHECKING:
    from jobs.data.feed import Feed


def evaluate(
    model: torch.nn.Module,
    feed: Feed,
    *,
    task: str,
    device: torch.device,
    wire: Wire | None = None,
) -> dict[str, float]:
    """Mean loss per target (nats), and perplexity or accuracy. A collective.

    Raises InputError where no row has a target.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for step in feed.epoch():
            for batch in step.micros:
                logits, labels = ask(model, batch, device=device)
                sums[0] += float(loss_sum(logits, labels))
                sums[1] += batch.targets
                if task == "sequence-classification":
                    sums[2] += correct(logits, labels)
    if wire is not None:
        # Summed in float32: NCCL and gloo both know it, and 24 bits are enough for one rank's sum.
        shared = sums.to(device=device, dtype=torch.float32)
        sums = wire.all_reduce(shared, EVALUATION).double().cpu()
    loss, targets, right = (float(value) for value in sums)
    if not targets:
        raise InputError([feed.nothing()])
    return figures(loss, targets, right, task=task)


def figures(loss: float, targets: float, right: float, *, task: str) -> dict[str, float]:
    """What sums over `targets` labels come to, `right` of them a classifier's first choice."""
    measured = {"loss": loss / targets}
    if task == "sequence-classification":
        return {**measured, "accuracy": right / targets, "rows": targets}
    # A diverged model's perplexity is past what a float holds.
    return {**measured, "perplexity": math.exp(min(measured["loss"], 700.0)), "tokens": targets}
