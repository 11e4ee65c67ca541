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

from jobs.search.trial_record import TrialRecord
from jobs.search.tune.trainable import REQUEST_KEY, TrialRequest
from jobs.spec.schema import RunSpec, SearchSpec, TrainSection
from jobs.spec.sections.search import Domain

TIME_KEY, METRIC_KEY = "step", "metric"
REDUCTION_FACTOR = 3
"""Of the trials that reach a rung, one in so many goes on."""


@dataclass(frozen=True)
class _PastTrial:
    """A trial of an earlier try, as a bracket knows it."""

    trial_id: str


def make_scheduler(search: SearchSpec, records: Sequence[TrialRecord]) -> TrialScheduler:
    """The scheduler, told what earlier tries of this search have measured."""
    section, train = search.section, search.train
    max_steps = max(_list_steps(search), default=10**9)
    common = {"time_attr": TIME_KEY, "metric": METRIC_KEY, "mode": section.direction}
    grace_steps = min(train.eval_every or max_steps, max_steps)
    if section.scheduler == "asha":
        asha = ASHAScheduler(
            **common, max_t=max_steps, grace_period=grace_steps, reduction_factor=REDUCTION_FACTOR
        )
        _replay_results(asha, records, section.direction)
        return asha
    if section.scheduler == "hyperband":
        return HyperBandScheduler(**common, max_t=max_steps, reduction_factor=REDUCTION_FACTOR)
    if section.scheduler == "pbt":
        return ResumablePBT(
            search, **common, perturbation_interval=grace_steps, quantile_fraction=0.25, synch=True
        )
    return FIFOScheduler()


def _list_steps(search: SearchSpec) -> list[int]:
    """How many steps, or rounds, trials may have: one is whole at its own end, no other's."""
    if search.federation is None:
        key, default = "train.steps", search.train.steps
    else:
        key, default = "federation.rounds", search.federation.rounds
    domain = search.section.space.get(key)
    ends = (default,) if domain is None else domain.list_ends()
    return [int(steps) for steps in ends if steps is not None]


def _replay_results(asha: ASHAScheduler, records: Sequence[TrialRecord], mode: str) -> None:
    """Each rung has what ended trials had there: a new one is measured by them too."""
    sign = 1.0 if mode == "max" else -1.0
    for record in records:
        if record.is_finished:
            for step, value in record.curve:
                asha._brackets[0].on_result(_PastTrial(f"past-{record.number}"), step, sign * value)


class ResumablePBT(PopulationBasedTraining):  # type: ignore[misc]  # no types mypy may lean on
    """PBT whose losers keep their own run: they take over a state, and values near its own."""

    def __init__(self, search: SearchSpec, **options: Any) -> None:
        super().__init__(**options, custom_explore_fn=lambda config: config)
        self._search = search

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The next one to go on. Where all wait for one that failed, they go on unexchanged."""
        chosen = super().choose_trial_to_run(tune_controller)
        live = tune_controller.get_live_trials()
        if chosen is None and live and all(trial.status == Trial.PAUSED for trial in live):
            # Ray's PBT wakes nobody here: it exchanges only when the last one reports.
            reached = max(self._trial_state[trial].last_train_time for trial in live)
            self._next_perturbation_sync = reached + self._perturbation_interval
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], Any]:
        return {
            REQUEST_KEY: exchange_state(
                self._search, trial.config[REQUEST_KEY], trial_to_clone.config[REQUEST_KEY]
            )
        }, {}


def exchange_state(search: SearchSpec, own: TrialRequest, other: TrialRequest) -> TrialRequest:
    """A trial after it took over another's state: its own run, the other's values moved.

    The same for the same two trials and values, so that a search can be repeated.
    """
    seed = f"{search.section.seed} {own.number} {other.number} {other.config}"
    rng = random.Random(seed)
    space = search.section.space
    values = {key: perturb_value(space[key], value, rng) for key, value in other.config.items()}
    train = own.request.spec.train.model_dump()
    train |= {key.removeprefix("train."): value for key, value in values.items()}
    spec = own.request.spec.model_copy(update={"train": TrainSection.model_validate(train)})
    stages = tuple(
        dataclasses.replace(stage, learning_rate=_get_learning_rate(spec, stage.name))
        for stage in own.request.plan.stages
    )
    plan = dataclasses.replace(own.request.plan, stages=stages)
    request = dataclasses.replace(own.request, spec=spec, plan=plan)
    return dataclasses.replace(own, config=values, request=request, donor=other.number)


def _get_learning_rate(spec: RunSpec, stage: str) -> float:
    sparse_rate = spec.train.sparse_learning_rate
    return sparse_rate if stage == "sparse" and sparse_rate else spec.train.learning_rate


def perturb_value(domain: Domain, value: float, rng: random.Random) -> float:
    """A neighbour of the value: the next in a list, or a fifth more or less, within bounds."""
    if domain.finite is not None:
        index = domain.finite.index(value) if value in domain.finite else 0
        neighbour = max(0, min(len(domain.finite) - 1, index + rng.choice((-1, 1))))
        listed_value: float = domain.finite[neighbour]
        return listed_value
    low, high = domain.bounds
    return float(min(high, max(low, value * rng.choice((0.8, 1.2)))))
