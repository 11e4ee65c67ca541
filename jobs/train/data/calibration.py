"""Calibration sequences: the first training batches, one sequence at a time, without a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from jobs.train.data.global_batches import Feed
from jobs.train.engine.chunked_loss import PLAIN_LOSS, LossChoice
from jobs.train.engine.loss import compute_loss


def make_calibration_pass(
    model: Any,
    feed: Feed,
    *,
    batches: int,
    device: torch.device,
    choice: LossChoice = PLAIN_LOSS,
    on_sequence: Callable[[], None] = lambda: None,
) -> Callable[[], int]:
    """Return the function that `slora.masks.scoring` calls for one pass: it runs this rank's share
    of the first `batches` global batches and returns the number of sequences.

    The feed has micro-batches of one sequence, so that the unit is the same for any number of
    workers; its loss is the mean over its own targets. DeepSpeed must not hold the model yet.
    `on_sequence` is called after each sequence.
    """

    def run() -> int:
        count = 0
        for step in feed.iter_steps(steps=batches):
            for batch in step.micros:
                if not batch.targets:
                    continue
                loss = compute_loss(model, batch, choice, device=device) / batch.targets
                loss.backward()  # type: ignore[no-untyped-call]
                count += 1
                on_sequence()
        # A trained head has accumulated gradients that no score needs.
        model.zero_grad(set_to_none=True)
        return count

    return run
