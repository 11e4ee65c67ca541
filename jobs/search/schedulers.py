"""Tune's schedulers as the search's section names them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial
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
from jobs.search.trainable import ASKED, Asked
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
    most = max(_steps(search), default=10**9)
    common = {"time_attr": TIME, "metric": METRIC, "mode": section.direction}
    first = min(train.eval_every or most, most)
    if section.scheduler == "asha":
        made = ASHAScheduler(**common, max_t=most, grace_period=first, reduction_factor=REDUCTION)
        _remember(made, rows, section.direction)
        return made
    if section.scheduler == "hyperband":
        return HyperBandScheduler(**common, max_t=most, reduction_factor=REDUCTION)
    if section.scheduler == "pbt":
        return Exchange(
            search, **common, perturbation_interval=first, quantile_fraction=0.25, synch=True
        )
    return FIFOScheduler()


def _steps(search: Search) -> list[int]:
    """How many steps, or rounds, trials may have: one is whole at its own end, no other's."""
    if search.federation is None:
        key, default = "train.steps", search.spec.train.steps
    else:
        key, default = "federation.rounds", search.federation.rounds
    domain = search.section.space.get(key)
    found = (default,) if domain is None else domain.ends()
    return [int(steps) for steps in found if steps is not None]


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

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The next one to go on. Where all wait for one that failed, they go on unexchanged."""
        found = super().choose_trial_to_run(tune_controller)
        live = tune_controller.get_live_trials()
        if found is None and live and all(trial.status == Trial.PAUSED for trial in live):
            # Ray's PBT wakes nobody here: it exchanges only when the last one reports.
            reached = max(self._trial_state[trial].last_train_time for trial in live)
            self._next_perturbation_sync = reached + self._perturbation_interval
            found = super().choose_trial_to_run(tune_controller)
        return found

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], Any]:
        return {
            ASKED: taken_over(self._search, trial.config[ASKED], trial_to_clone.config[ASKED])
        }, {}


def taken_over(search: Search, own: Asked, other: Asked) -> Asked:
    """A trial after it took over another's state: its own run, the other's values moved.

    The same for the same two trials and values, so that a search can be repeated.
    """
    seed = f"{search.section.seed} {own.number} {other.number} {other.config}"
    chance = random.Random(seed)
    space = search.section.space
    values = {key: moved(space[key], value, chance) for key, value in other.config.items()}
    train = own.request.spec.train.model_dump()
    train |= {key.removeprefix("train."): value for key, value in values.items()}
    spec = own.request.spec.model_copy(update={"train": TrainSection.model_validate(train)})
    stages = tuple(
        dataclasses.replace(stage, learning_rate=_rate(spec, stage.name))
        for stage in own.request.plan.stages
    )
    plan = dataclasses.replace(own.request.plan, stages=stages)
    request = dataclasses.replace(own.request, spec=spec, plan=plan)
    return dataclasses.replace(own, config=values, request=request, donor=other.number)


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
