"""Create the scheduler of Ray Tune that the spec names."""

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

from jobs.plan.plan import StagePlan
from jobs.plan.stage_rates import get_head_rate, get_stage_rate
from jobs.search.shared_cache import compute_sharing_keys
from jobs.search.trial_record import TrialRecord
from jobs.search.tune.trial_task import TASK_KEY, TrialTask
from jobs.spec.schema import SearchSpec
from jobs.spec.sections.search import Domain
from jobs.spec.sections.training import TrainSection

TIME_KEY, METRIC_KEY = "step", "metric"
REDUCTION_FACTOR = 3
"""One of so many trials that reach a rung continues."""


@dataclass(frozen=True)
class _PastTrial:
    """A trial of an earlier attempt, as far as a bracket reads it."""

    trial_id: str


def make_scheduler(search: SearchSpec, records: Sequence[TrialRecord]) -> TrialScheduler:
    """Return the scheduler, with the results of earlier attempts of this search."""
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
    """Return the possible numbers of steps, or of rounds, of a trial."""
    if search.federation is None:
        key, default = "train.steps", search.train.steps
    else:
        key, default = "federation.rounds", search.federation.rounds
    domain = search.section.space.get(key)
    ends = (default,) if domain is None else domain.list_ends()
    return [int(steps) for steps in ends if steps is not None]


def _replay_results(asha: ASHAScheduler, records: Sequence[TrialRecord], mode: str) -> None:
    """Fill each rung with the results of ended trials, so that new ones are compared with them."""
    sign = 1.0 if mode == "max" else -1.0
    for record in records:
        if record.is_finished:
            for step, value in record.curve:
                asha._brackets[0].on_result(_PastTrial(f"past-{record.number}"), step, sign * value)


class ResumablePBT(PopulationBasedTraining):  # type: ignore[misc]  # Ray is untyped
    """PBT for trials with a run each: the worst continue from the state of the best."""

    def __init__(self, search: SearchSpec, **options: Any) -> None:
        super().__init__(**options, custom_explore_fn=lambda config: config)
        self._search = search

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Return the next trial to continue, also if all wait for one that failed."""
        chosen = super().choose_trial_to_run(tune_controller)
        live = tune_controller.get_live_trials()
        if chosen is None and live and all(trial.status == Trial.PAUSED for trial in live):
            # Ray's PBT resumes none of them: it exchanges only when the last one reports.
            reached = max(self._trial_state[trial].last_train_time for trial in live)
            self._next_perturbation_sync = reached + self._perturbation_interval
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], Any]:
        return {
            TASK_KEY: exchange_state(
                self._search, trial.config[TASK_KEY], trial_to_clone.config[TASK_KEY]
            )
        }, {}


def exchange_state(search: SearchSpec, own: TrialTask, other: TrialTask) -> TrialTask:
    """Return the task of a trial that continues from the state of another.

    It has its own run, and the values of the other, perturbed. The result depends on the two
    trials and their values only, so that a search can be repeated.
    """
    seed = f"{search.section.seed} {own.number} {other.number} {other.config}"
    rng = random.Random(seed)
    space = search.section.space
    values = {key: perturb_value(space[key], value, rng) for key, value in other.config.items()}
    train = own.request.spec.train.model_dump()
    train |= {key.removeprefix("train."): value for key, value in values.items()}
    spec = own.request.spec.model_copy(update={"train": TrainSection.model_validate(train)})
    stages = tuple(_change_rates(stage, spec.train) for stage in own.request.plan.stages)
    plan = dataclasses.replace(own.request.plan, stages=stages)
    request = dataclasses.replace(own.request, spec=spec, plan=plan)
    keys = compute_sharing_keys(request)
    return dataclasses.replace(own, config=values, request=request, keys=keys, donor=other.number)


def _change_rates(stage: StagePlan, train: TrainSection) -> StagePlan:
    has_head = stage.head_learning_rate is not None
    return dataclasses.replace(
        stage,
        learning_rate=get_stage_rate(train, stage.name),
        head_learning_rate=get_head_rate(train, stage.name) if has_head else None,
    )


def perturb_value(domain: Domain, value: float, rng: random.Random) -> float:
    """Return the next value in the list, or one a fifth larger or smaller, within bounds."""
    if domain.finite is not None:
        index = domain.finite.index(value) if value in domain.finite else 0
        neighbour = max(0, min(len(domain.finite) - 1, index + rng.choice((-1, 1))))
        listed_value: float = domain.finite[neighbour]
        return listed_value
    low, high = domain.bounds
    return float(min(high, max(low, value * rng.choice((0.8, 1.2)))))
