"""The estimate of a run: all shardings, the chosen one, and the cost."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from jobs.plan.estimate.inputs import EstimateInput
from jobs.plan.estimate.output_files import estimate_checkpoint
from jobs.plan.estimate.sharding_choice import (
    ShardingOption,
    choose_sharding,
    list_options,
    list_warnings,
)
from jobs.plan.estimate.speed import Speed


@dataclass(frozen=True)
class RunEstimate:
    """Memory, traffic, time and cost of a run."""

    workers: int
    nodes: int
    workers_per_node: int
    memory: int | None
    """Bytes that a worker may use; None if unknown."""
    options: tuple[ShardingOption, ...]
    sharding: str
    reason: str
    fault: str | None
    """Why the run is impossible: by how much it exceeds the memory."""
    warnings: tuple[str, ...]
    steps: int | None
    tokens: int | None
    """Maximum tokens of the run; None if only the rows give the steps."""
    checkpoint: int
    """Bytes of the largest checkpoint."""
    adapter: int
    seconds: float | None
    """Seconds of its steps, without the start, evaluations and the hand-off."""
    cost: float | None
    speed: Speed | None

    @property
    def selected(self) -> ShardingOption:
        """Return the chosen sharding."""
        return next(option for option in self.options if option.sharding == self.sharding)

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as plain values, including derived ones."""
        document = dataclasses.asdict(self)
        document["options"] = [option.to_json() for option in self.options]
        return document


def make_estimate(
    inputs: EstimateInput, requested: str, *, adapter: int, speed: Speed | None
) -> RunEstimate:
    """Estimate a run. `requested` is the sharding of the spec, or auto."""
    options = list_options(inputs)
    choice = choose_sharding(inputs, options, requested)
    selected = next(selected for selected in options if selected.sharding == choice.sharding)
    steps = _count_steps(inputs)
    tokens = _count_tokens(inputs, steps, speed)
    seconds = tokens / speed.tokens_per_second if tokens is not None and speed else None
    return RunEstimate(
        workers=inputs.resources.workers,
        nodes=inputs.resources.nodes,
        workers_per_node=inputs.resources.per_node,
        memory=inputs.resources.memory,
        options=options,
        sharding=choice.sharding,
        reason=choice.reason,
        fault=choice.fault,
        warnings=list_warnings(inputs, selected),
        steps=steps,
        tokens=tokens,
        checkpoint=max(estimate_checkpoint(stage) for stage in inputs.stages),
        adapter=adapter,
        seconds=seconds,
        cost=_compute_cost(inputs, seconds),
        speed=speed,
    )


def _count_steps(inputs: EstimateInput) -> int | None:
    counts = [stage.steps for stage in inputs.stages]
    return None if None in counts else sum(count or 0 for count in counts)


def _count_tokens(inputs: EstimateInput, steps: int | None, speed: Speed | None) -> int | None:
    if steps is None:
        return None
    fill = speed.fill if speed and speed.fill else 1.0
    return round(steps * inputs.batching.sequences * inputs.batching.length * min(1.0, fill))


def _compute_cost(inputs: EstimateInput, seconds: float | None) -> float | None:
    price = inputs.resources.price_per_hour
    return (
        None
        if seconds is None or price is None
        else price * inputs.resources.nodes * seconds / 3600
    )
