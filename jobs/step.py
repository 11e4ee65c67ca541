"""One optimiser step on one worker: its micro-batches through the engine, and the batch's loss."""

from __future__ import annotations

import math

import torch

from jobs.data.feed import Step
from jobs.engine import Engine
from jobs.errors import TrainingFailed
from jobs.objective import ask, loss_sum


def take_step(engine: Engine, step: Step, *, rate: float, device: torch.device) -> float:
    """Trains on this worker's slice; the mean loss of the whole global batch, in nats.

    A collective. The loss of a micro-batch is its sum over the targets of the whole batch, so the
    sum over micro-batches and workers is the mean over targets, however they are dealt.
    """
    engine.set_learning_rate(rate)
    total = torch.zeros((), device=device)
    for batch in step.micros:
        asked = ask(engine.model, batch, asked_of=engine.module, device=device)
        loss = loss_sum(*asked) / step.targets
        engine.backward(loss)
        total += loss.detach()
    torch.distributed.all_reduce(total)
    return float(total)


def check_finite(loss: float, *, step: int, stage: str, rate: float) -> None:
    """Raises TrainingFailed, the same on every rank, for a loss that is not a number."""
    if math.isfinite(loss):
        return
    where = f"step {step}, {stage} stage"
    remedy = f"Lower the learning rate ({rate:g}), or look at the rows of this step."
    raise TrainingFailed(where, f"the loss is {loss}", remedy)
