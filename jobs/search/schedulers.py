"""Tune's schedulers as the search's section names them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)

from jobs.search.door import Search
from jobs.search.rows import Row
from jobs.search.section import Domain
from jobs.search.trainable import ORDER
from jobs.spec import Spec, TrainSection

TIME, METRIC = "step", "metric"
REDUCTION = 3
"""Of the trials that reach a rung, one in so many goes on."""


@dataclass(frozen=True)
class _Past:
    """A trial of an earlier try, as a bracket knows it."""

    trial_id: str


def scheduler_of(search: Search, rows: Sequence[Row]) -> TrialScheduler:
    """The scheduler, told what earlier tries of this search have measured."""
    section, train = search.section, search.spec.train
    most = train.steps or 10**9
    common = {"time_attr": TIME, "metric": METRIC, "mode": section.direction}
    first = min(train.eval_every or most, most)
    if section.scheduler == "asha":
        made = ASHAScheduler(**common, max_t=most, grace_period=first, reduction_factor=REDUCTION)
        _remember(made, rows, section.direction)
        return made
    if section.scheduler == "hyperband":
        return HyperBandScheduler(**common, max_t=most, reduction_factor=REDUCTION)
    if section.scheduler == "pbt":
        return Exchange(search, **common, perturbation_interval=first, quantile_fraction=0.25)
    return FIFOScheduler()


def _remember(asha: ASHAScheduler, rows: Sequence[Row], mode: str) -> None:
    """Each rung has what ended trials had there: a new one is measured by them too."""
    sign = 1.0 if mode == "max" else -1.0
    for row in rows:
        if row.ended:
            for step, value in row.curve:
                asha._brackets[0].on_result(_Past(f"past-{row.number}"), step, sign * value)


class Exchange(PopulationBasedTraining):  # type: ignore[misc]  # no types mypy may lean on
    """PBT whose losers keep their own run: they take over a state, and values near its own."""

    def __init__(self, search: Search, **told: Any) -> None:
        super().__init__(**told, custom_explore_fn=lambda config: config)
        self._search = search

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], Any]:
        return taken_over(self._search, trial.config, trial_to_clone.config), {}


def taken_over(search: Search, own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's config after it took over another's state: its own run, the other's values moved.

    The same for the same two trials and values, so that a search can be repeated.
    """
    seed = f"{search.section.seed} {own['number']} {other['number']} {other['values']}"
    chance = random.Random(seed)
    space = search.section.space
    values = {key: moved(space[key], value, chance) for key, value in other["values"].items()}
    asked = own[ORDER]
    train = asked.request.spec.train.model_dump()
    train |= {key.removeprefix("train."): value for key, value in values.items()}
    spec = asked.request.spec.model_copy(update={"train": TrainSection.model_validate(train)})
    plan = asked.request.plan
    stages = tuple(
        dataclasses.replace(stage, learning_rate=_rate(spec, stage.name)) for stage in plan.stages
    )
    plan = dataclasses.replace(plan, stages=stages)
    request = dataclasses.replace(asked.request, spec=spec, plan=plan)
    made = dataclasses.replace(asked, request=request, donor=int(other["number"]))
    return {ORDER: made, "number": own["number"], "values": values}


def _rate(spec: Spec, stage: str) -> float:
    sparse = spec.train.sparse_learning_rate
    return sparse if stage == "sparse" and sparse else spec.train.learning_rate


def moved(domain: Domain, value: float, chance: random.Random) -> float:
    """A neighbour of the value: the next in a list, or a fifth more or less, within bounds."""
    if domain.finite is not None:
        at = domain.finite.index(value) if value in domain.finite else 0
        near = max(0, min(len(domain.finite) - 1, at + chance.choice((-1, 1))))
        found: float = domain.finite[near]
        return found
    low, high = domain.bounds
    return float(min(high, max(low, value * chance.choice((0.8, 1.2)))))
