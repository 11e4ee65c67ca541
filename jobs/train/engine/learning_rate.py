"""The learning rates of a step: a warm-up, then a decay, from the start in each stage.

A head has a rate of its own, and the same schedule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.plan.plan import StagePlan
from jobs.spec.sections.training import TrainSection

IS_HEAD = "is_head"
"""Key of an optimizer's parameter group: whether it holds the head."""


@dataclass(frozen=True)
class StepRates:
    """The learning rates of one optimizer step."""

    stage: float
    head: float
    """Without effect if nothing of a head is trained."""


def compute_rates(step: int, *, steps: int, stage: StagePlan, train: TrainSection) -> StepRates:
    """Return the rates of optimizer step `step` (0 is the first) of a stage of `steps`."""
    head_peak = stage.head_learning_rate
    if head_peak is None:
        head_peak = stage.learning_rate
    rates = (
        compute_rate(step, steps=steps, peak=peak, warmup=train.warmup, schedule=train.schedule)
        for peak in (stage.learning_rate, head_peak)
    )
    return StepRates(*rates)


def set_rates(groups: Iterable[dict[str, Any]], rates: StepRates) -> None:
    """Give the parameter groups of an optimizer the rates of its next step."""
    for group in groups:
        group["lr"] = rates.head if group[IS_HEAD] else rates.stage


def describe_rates(stage: StagePlan, rates: StepRates) -> Mapping[str, float]:
    """Return the rates of a step by the names of their metrics: the head's only if there is one."""
    if stage.head_learning_rate is None:
        return {"learning_rate": rates.stage}
    return {"learning_rate": rates.stage, "head_learning_rate": rates.head}


def compute_rate(step: int, *, steps: int, peak: float, warmup: float, schedule: str) -> float:
    """Return the rate of optimizer step `step` (0 is the first) of a stage of `steps`.

    It rises linearly over `warmup * steps` steps, so that no step has a rate of zero; then it falls
    to zero along half a cosine or a line, or stays.
    """
    warmup_steps = math.ceil(warmup * steps)
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return peak
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    remaining = (1 + math.cos(math.pi * done)) / 2 if schedule == "cosine" else 1 - done
    return peak * remaining
