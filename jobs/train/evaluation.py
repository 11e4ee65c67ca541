"""Evaluation of the model in training on held-out rows, the same for any number of workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from jobs.errors import InputError
from jobs.train.comm.collectives import EVALUATION, Collectives
from jobs.train.engine.chunked_loss import PLAIN_LOSS, LossChoice
from jobs.train.evaluation_sums import compute_metrics, compute_sums, make_empty_sums

if TYPE_CHECKING:
    from jobs.train.data.global_batches import Feed


def evaluate(
    model: Any,
    feed: Feed,
    *,
    device: torch.device,
    choice: LossChoice = PLAIN_LOSS,
    collectives: Collectives | None = None,
) -> dict[str, float]:
    """Return the mean loss per target, and the other metrics of what the feed's rows teach. A
    collective.

    Raise InputError if no row has a target.
    """
    sums = make_empty_sums(feed.kind, getattr(model.config, "num_labels", 0))
    with torch.no_grad():
        for step in feed.iter_epoch():
            for batch in step.micros:
                sums += compute_sums(model, batch, choice, device=device)
    if collectives is not None:
        sums = collectives.all_reduce(sums.to(device), EVALUATION).cpu()
    if not sums[1]:
        raise InputError([feed.make_no_target_fault()])
    return compute_metrics(sums.tolist(), feed.kind)
