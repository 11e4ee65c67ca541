"""An optimizer step on one worker: its micro-batches through the engine, and the batch's loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from jobs.errors import TrainingFailed
from jobs.plan.plan import StagePlan
from jobs.train.data.collate import Batch
from jobs.train.data.global_batches import Step
from jobs.train.engine.chunked_loss import PLAIN_LOSS, LossChoice
from jobs.train.engine.engine import Engine, ExchangeResult
from jobs.train.engine.learning_rate import StepRates
from jobs.train.engine.loss import compute_loss


def take_step(
    engine: Engine,
    step: Step,
    *,
    rates: StepRates,
    device: torch.device,
    choice: LossChoice = PLAIN_LOSS,
    preempted: bool = False,
    sync: bool = False,
) -> ExchangeResult | None:
    """Train on this worker's slice. Return the exchange, or None between exchanges. A collective.

    The loss of a micro-batch is its sum over the targets of the global batch, so the sum over
    micro-batches and workers is the mean over targets, in nats, however they are split.
    """
    total = torch.zeros((), device=device)
    for batch in step.micros:
        total += _train_micro_batch(engine, batch, step.targets, choice, device)
    return engine.step(rates=rates, loss=total, preempted=preempted, sync=sync)


def _train_micro_batch(
    engine: Engine, batch: Batch, targets: int, choice: LossChoice, device: torch.device
) -> Tensor:
    """Add a micro-batch's gradient, and return its loss over the targets, without its graph.

    The graph ends here: what it still holds would lie beside the next forward's activations.
    """
    total = compute_loss(engine.model, batch, choice, unwrapped_model=engine.module, device=device)
    loss = total / targets
    engine.backward(loss)
    return loss.detach()


def has_diverged(loss: float, grad_norm: float) -> bool:
    """Return whether a step's loss or gradient norm is NaN or infinite."""
    return not (math.isfinite(loss) and math.isfinite(grad_norm))


def locate_non_finite(
    engine: Engine, step: Step, device: torch.device, choice: LossChoice = PLAIN_LOSS
) -> str:
    """Return where the first such number is: a layer's output, or a trained tensor.

    Runs the step's batches again. A collective.
    """
    broken_layers: list[str] = []
    with torch.no_grad(), _watch_outputs(engine.module, broken_layers):
        for batch in step.micros:
            compute_loss(engine.model, batch, choice, unwrapped_model=engine.module, device=device)
    tensor = engine.find_non_finite()
    if broken_layers:
        return f"first in the output of {broken_layers[0]}"
    return f"first in {tensor}" if tensor else "in the loss only"


def make_divergence_error(
    loss: float, grad_norm: float, *, step: int, stage: StagePlan, location: str
) -> TrainingFailed:
    """Return the error that ends a diverged run, the same on every rank."""
    where = f"step {step}, {stage.name} stage"
    value = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {grad_norm}"
    head = stage.head_learning_rate
    rate = f"{stage.learning_rate:g}" if head is None else f"{stage.learning_rate:g}, head {head:g}"
    remedy = f"Lower the learning rate ({rate}), or check this step's rows."
    return TrainingFailed(where, f"the {value}, {location}", remedy)


@contextmanager
def _watch_outputs(model: nn.Module, broken_layers: list[str]) -> Iterator[None]:
    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                broken_layers.append(name)

        return hook

    # Modules without children: the first of them is the most exact name of the location.
    leaves = [(n, m) for n, m in model.named_modules() if not any(True for _ in m.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
