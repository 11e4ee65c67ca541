"""Tune's schedulers get the right limits, and PBT leaves no trial waiting for ever."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from jobs.plan.preflight import validate_run
from jobs.search.shared_cache import compute_sharing_keys
from jobs.search.tune.schedulers import ResumablePBT, exchange_state, make_scheduler
from jobs.search.tune.trial_task import TrialTask
from jobs.spec.load import make_trial_spec
from jobs.spec.sections.search import Domain
from tests.jobs.search.specs import a_search

RATE = {"train.learning_rate": {"choice": [1e-2, 1e-3, 1e-4, 1e-5]}}


@dataclass(eq=False)
class FakeTrial:
    """The part of a trial that the scheduler reads."""

    trial_id: str
    status: str = Trial.RUNNING
    config: dict[str, Any] = field(default_factory=dict)

    def is_finished(self) -> bool:
        return self.status in (Trial.TERMINATED, Trial.ERROR)


class FakeController:
    """Holds the trials for the scheduler."""

    def __init__(self, *trials: FakeTrial) -> None:
        self.trials = list(trials)

    def get_trials(self) -> list[FakeTrial]:
        return self.trials

    def get_live_trials(self) -> set[FakeTrial]:
        return {trial for trial in self.trials if not trial.is_finished()}


def make_pbt(folder: Path, *trials: FakeTrial) -> tuple[ResumablePBT, FakeController]:
    pbt = make_scheduler(a_search(folder, {"scheduler": "pbt", "space": RATE}), [])
    assert isinstance(pbt, ResumablePBT)
    for trial in trials:
        pbt._trial_state[trial] = _State()
    return pbt, FakeController(*trials)


class _State:
    last_train_time = 0
    last_perturbation_time = 0
    last_score = None


def report(pbt: ResumablePBT, controller: FakeController, trial: FakeTrial, step: int) -> None:
    decision = pbt.on_trial_result(controller, trial, {"step": step, "metric": 1.0})
    assert decision == TrialScheduler.PAUSE
    trial.status = Trial.PAUSED


def test_trials_that_wait_for_a_failed_one_continue(tmp_path: Path):
    waiting, fails = FakeTrial("waiting"), FakeTrial("fails")
    pbt, controller = make_pbt(tmp_path, waiting, fails)
    report(pbt, controller, waiting, 4)
    assert pbt.choose_trial_to_run(controller) is None
    fails.status = Trial.TERMINATED
    assert pbt.choose_trial_to_run(controller) is waiting


def test_trials_that_resume_at_unequal_steps_all_reach_their_end(tmp_path: Path):
    behind, ahead = FakeTrial("behind"), FakeTrial("ahead")
    pbt, controller = make_pbt(tmp_path, behind, ahead)
    behind.status = Trial.PAUSED
    pbt._trial_state[behind].last_train_time = 4
    pbt._trial_state[ahead].last_train_time = 8
    pbt._next_perturbation_sync = 8
    ahead.status = Trial.PAUSED
    assert pbt.choose_trial_to_run(controller) is behind
    behind.status = Trial.TERMINATED
    assert pbt.choose_trial_to_run(controller) is ahead


def test_a_trial_that_still_runs_is_waited_for(tmp_path: Path):
    waiting, runs = FakeTrial("waiting"), FakeTrial("runs")
    pbt, controller = make_pbt(tmp_path, waiting, runs)
    report(pbt, controller, waiting, 4)
    assert pbt.choose_trial_to_run(controller) is None


@pytest.mark.parametrize(
    ("steps", "max_steps"),
    [
        pytest.param({"choice": [8, 40]}, 40, id="listed"),
        pytest.param({"randint": [8, 30]}, 30, id="between"),
    ],
)
def test_asha_lets_a_trial_of_more_steps_than_the_default_reach_its_end(
    tmp_path: Path, steps: dict[str, Any], max_steps: int
):
    search = a_search(tmp_path, {"space": {"train.steps": steps}})
    assert make_scheduler(search, [])._max_t == max_steps
    assert Domain.model_validate(steps).finite


def test_a_trial_that_continues_from_another_trains_at_the_perturbed_rates(folder: Path):
    rates = {"train.learning_rate": [1e-3, 1e-2], "train.head_learning_rate": [1e-2, 1e-1]}
    space = {key: {"uniform": bounds} for key, bounds in rates.items()}
    search = a_search(folder, {"scheduler": "pbt", "space": space})
    config = {"train.learning_rate": 5e-3, "train.head_learning_rate": 5e-2}
    validated = validate_run(make_trial_spec(search, config))
    # As if the model had a head.
    stages = tuple(replace(stage, head_learning_rate=5e-2) for stage in validated.plan.stages)
    validated = replace(validated, plan=replace(validated.plan, stages=stages))
    request = validated.make_request("trial")
    task = TrialTask(0, config, request, "search", "loss", compute_sharing_keys(request))
    exchanged = exchange_state(search, task, replace(task, number=1))
    assert exchanged.config != config
    for stage in exchanged.request.plan.stages:
        assert stage.learning_rate == exchanged.config["train.learning_rate"]
        assert stage.head_learning_rate == exchanged.config["train.head_learning_rate"]
