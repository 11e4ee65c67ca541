"""Calibration sequences: the first training batches, one sequence at a time, without a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jobs.train.data.collate import Batch
from jobs.train.data.global_batches import Feed
from jobs.train.data.tokenization import IGNORE_INDEX
from jobs.train.engine.chunked_loss import PLAIN_LOSS, LossChoice
from jobs.train.engine.loss import compute_loss
from slora.handoff.capture import CountedTokens


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
                del loss  # its graph would lie beside the next sequence's
                count += 1
                on_sequence()
        # A trained head has accumulated gradients that no score needs.
        model.zero_grad(set_to_none=True)
        return count

    return run


def make_sketch_pass(
    model: Any,
    feed: Feed,
    *,
    batches: int,
    device: torch.device,
    gradients: bool,
    choice: LossChoice = PLAIN_LOSS,
    on_sequence: Callable[[], None] = lambda: None,
) -> Callable[[CountedTokens], int]:
    """Return the function of one pass for `collect_sketches`, over the same sequences.

    With `gradients` each sequence also runs backward, from the loss summed over its targets: every
    target counts the same.
    """

    def run(tokens: CountedTokens) -> int:
        count = 0
        for step in feed.iter_steps(steps=batches):
            # A filler counts nothing, but all ranks gather a sharded base equally often.
            for batch in step.micros:
                tokens.set_masks(find_counted_tokens(batch))
                loss = compute_loss(model, batch, choice, device=device)
                if gradients:
                    loss.backward()  # type: ignore[no-untyped-call]
                del loss
                count += bool(batch.targets)
                on_sequence()
        return count

    return run


def find_counted_tokens(batch: Batch) -> list[Tensor]:
    """Return the masks `[m, L]` of the tokens that a hand-off counts.

    In a language model those from which a target is predicted: the first tokens of a sequence, on
    which attention rests, have most of the inputs' energy and no part in the loss. Elsewhere, and
    in an encoder beside a decoder, all but padding.
    """
    masks = []
    if batch.kind == "tokens":
        counted = torch.zeros_like(batch.labels, dtype=torch.bool)
        counted[:, :-1] = batch.labels[:, 1:] != IGNORE_INDEX
        masks.append(counted)
    if batch.kind == "completion":
        masks.append(batch.labels != IGNORE_INDEX)
    if batch.kind != "tokens" and "attention_mask" in batch.inputs:
        masks.append(batch.inputs["attention_mask"].bool())
    return masks if batch.targets else [torch.zeros_like(mask) for mask in masks]
