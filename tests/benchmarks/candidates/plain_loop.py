"""A plain torch loop over steps of the product's feed: AdamW, and a rate for each group."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from jobs.errors import TrainingFailed
from jobs.train.data.global_batches import Step
from jobs.train.engine.learning_rate import compute_rate
from jobs.train.engine.loss import compute_loss
from jobs.train.model.load_base import LoadedBase
from jobs.train.request import TrainingRequest

CPU = torch.device("cpu")
Group = tuple[Sequence[nn.Parameter], float]
"""Parameters and the peak of their learning rate."""
AfterStep = Callable[[int, float, Step], None]
"""Called after each optimizer step with its number, its share of the peak rate, and its batch."""


class RatedAdamW:
    """AdamW over groups with rates of their own, clipped as a whole; a bfloat16 parameter holds a
    rounded copy of a float32 master.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._pairs = list[tuple[nn.Parameter, nn.Parameter]]()
        parts = []
        for parameters, peak in groups:
            masters = [
                p if p.dtype == torch.float32 else nn.Parameter(p.detach().float())
                for p in parameters
            ]
            self._pairs += zip(parameters, masters, strict=True)
            parts.append({"params": masters, "peak": peak})
        self._optimizer = torch.optim.AdamW(parts, lr=0.0, weight_decay=0.0)

    def step(self, share: float, *, max_norm: float) -> None:
        """Take one step at this share of the peak rates, and clear the gradients."""
        for parameter, master in self._pairs:
            if master is not parameter:
                assert parameter.grad is not None
                master.grad = parameter.grad.float()
                parameter.grad = None
        torch.nn.utils.clip_grad_norm_([master for _, master in self._pairs], max_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * share
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            for parameter, master in self._pairs:
                if master is not parameter:
                    parameter.copy_(master)


def run_steps(
    request: TrainingRequest,
    base: LoadedBase,
    groups: Sequence[Group],
    steps: Sequence[Step],
    after_step: AfterStep | None = None,
) -> None:
    """Train one stage, with a schedule of its own, as the product's."""
    train, optimizer = request.spec.train, RatedAdamW(groups)
    for number, step in enumerate(steps):
        for micro in step.micros:
            loss = compute_loss(base.model, micro, base.loss, device=CPU) / step.targets
            loss.backward()  # type: ignore[no-untyped-call]
            if not bool(torch.isfinite(loss)):
                raise TrainingFailed("candidates", f"the loss of step {number + 1} is {loss}", "")
        share = compute_rate(
            number, steps=len(steps), peak=1.0, warmup=train.warmup, schedule=train.schedule
        )
        optimizer.step(share, max_norm=train.max_grad_norm)
        if after_step is not None:
            after_step(number, share, step)
