"""What Tune's schedulers are told, and that the exchange of states leaves nobody waiting."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from jobs.search.tune.schedulers import ResumablePBT, make_scheduler
from jobs.spec.sections.search import Domain
from tests.jobs.search.specs import a_search

RATE = {"train.learning_rate": {"choice": [1e-2, 1e-3, 1e-4, 1e-5]}}


@dataclass(eq=False)
class Played:
    """As much of a trial as the scheduler looks at."""

    trial_id: str
    status: str = Trial.RUNNING
    config: dict[str, Any] = field(default_factory=dict)

    def is_finished(self) -> bool:
        return self.status in (Trial.TERMINATED, Trial.ERROR)


class Controller:
    """Holds trials; pauses those that the scheduler pauses."""

    def __init__(self, *trials: Played) -> None:
        self.trials = list(trials)

    def get_trials(self) -> list[Played]:
        return self.trials

    def get_live_trials(self) -> set[Played]:
        return {trial for trial in self.trials if not trial.is_finished()}


def _exchange(folder: Path, *trials: Played) -> tuple[ResumablePBT, Controller]:
    made = make_scheduler(a_search(folder, {"scheduler": "pbt", "space": RATE}), [])
    assert isinstance(made, ResumablePBT)
    for trial in trials:
        made._trial_state[trial] = _State()
    return made, Controller(*trials)


class _State:
    last_train_time = 0
    last_perturbation_time = 0
    last_score = None


def _reports(made: ResumablePBT, there: Controller, trial: Played, step: int) -> None:
    told = made.on_trial_result(there, trial, {"step": step, "metric": 1.0})
    assert told == TrialScheduler.PAUSE
    trial.status = Trial.PAUSED


def test_trials_that_wait_for_one_that_fails_go_on(tmp_path: Path):
    waits, fails = Played("waits"), Played("fails")
    made, there = _exchange(tmp_path, waits, fails)
    _reports(made, there, waits, 4)
    assert made.choose_trial_to_run(there) is None
    fails.status = Trial.TERMINATED
    assert made.choose_trial_to_run(there) is waits


def test_trials_that_go_on_from_unequal_steps_all_come_to_their_end(tmp_path: Path):
    behind, ahead = Played("behind"), Played("ahead")
    made, there = _exchange(tmp_path, behind, ahead)
    behind.status = Trial.PAUSED
    made._trial_state[behind].last_train_time = 4
    made._trial_state[ahead].last_train_time = 8
    made._next_perturbation_sync = 8
    ahead.status = Trial.PAUSED
    assert made.choose_trial_to_run(there) is behind
    behind.status = Trial.TERMINATED
    assert made.choose_trial_to_run(there) is ahead


def test_a_trial_that_still_runs_is_waited_for(tmp_path: Path):
    waits, runs = Played("waits"), Played("runs")
    made, there = _exchange(tmp_path, waits, runs)
    _reports(made, there, waits, 4)
    assert made.choose_trial_to_run(there) is None


@pytest.mark.parametrize(
    ("steps", "most"),
    [
        pytest.param({"choice": [8, 40]}, 40, id="listed"),
        pytest.param({"randint": [8, 30]}, 30, id="between"),
    ],
)
def test_asha_lets_a_trial_of_more_steps_than_the_default_reach_its_end(
    tmp_path: Path, steps: dict[str, Any], most: int
):
    search = a_search(tmp_path, {"space": {"train.steps": steps}})
    assert make_scheduler(search, [])._max_t == most
    assert Domain.model_validate(steps).finite
