"""What the rows say of what Tune tells: shares that stay, and reasons that are the trial's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from jobs.search.trial_log import TrialLog
from jobs.search.trial_record import TrialRecord
from jobs.search.tune.trainable import REQUEST_KEY
from jobs.search.tune.tune_callback import BudgetStopper, TrialRecorder, describe_spent_budget
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from tests.jobs.search.specs import a_search


@dataclass(frozen=True)
class Asks:
    """As much of an Asked as the watch looks at."""

    number: int = 0


@dataclass
class Told:
    """As much of one of Tune's trials as the watch looks at."""

    error: Exception | None = None

    @property
    def config(self) -> dict[str, Any]:
        return {REQUEST_KEY: Asks()}

    def get_pickled_error(self) -> Exception | None:
        return self.error


def _result(step: int, **more: Any) -> dict[str, Any]:
    known = {"step": step, "tokens": 10 * step, "taken": (), "failed": "", "ended": False}
    return {**known, "metric": 1 / max(step, 1), **more}


@pytest.fixture
def diary(tmp_path: Path) -> TrialLog:
    made = TrialLog(RunStore(DirectoryStore(tmp_path), "search"))
    made.write(TrialRecord(0, {"method.rank": 2}, status="running"))
    return made


def _watch(folder: Path, diary: TrialLog, said: list[TrialRecord] | None = None) -> TrialRecorder:
    return TrialRecorder(a_search(folder), diary, [].append if said is None else said.append)


def test_what_a_trial_shared_stays_known_after_it_was_started_again(
    tmp_path: Path, diary: TrialLog
):
    watch = _watch(tmp_path, diary)
    watch.on_trial_result(1, [], Told(), _result(4, taken=("sparse stage", "first evaluation")))
    watch.on_trial_result(2, [], Told(), _result(8))
    assert diary.records[0].shared == ("sparse stage", "first evaluation")
    assert diary.records[0].curve == ((4, 0.25), (8, 0.125))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(RayTaskError("step", "long trace", OSError("no space\n left")),
                     "OSError: no space left", id="an error of the trial's own actor"),
        pytest.param(None, "its process died, more often than cluster.max_failures allows",
                     id="a process that died"),
    ],
)  # fmt: skip
def test_a_trial_that_tune_gave_up_says_why(
    tmp_path: Path, diary: TrialLog, error: Exception | None, reason: str
):
    said: list[TrialRecord] = []
    _watch(tmp_path, diary, said).on_trial_error(1, [], Told(error))
    assert [(row.status, row.reason) for row in said] == [("failed", reason)]


def test_a_trial_that_failed_keeps_its_curve_and_ends_with_its_reason(
    tmp_path: Path, diary: TrialLog
):
    watch = _watch(tmp_path, diary)
    watch.on_trial_result(1, [], Told(), _result(4))
    failed = _result(0, failed="out of memory", ended=True)
    del failed["metric"]
    watch.on_trial_result(2, [], Told(), failed)
    [row] = diary.records
    assert (row.status, row.reason, row.steps) == ("failed", "out of memory", 4)
    assert row.curve == ((4, 0.25),)


@pytest.mark.parametrize(
    ("budget", "machine", "why"),
    [
        pytest.param({"tokens": 80}, {}, "80 tokens", id="tokens"),
        pytest.param({"seconds": 1e-9}, {}, "1e-09 s", id="seconds"),
        pytest.param({"cost": 2}, {"price_per_hour": 2.0}, "budget of 2", id="cost"),
    ],
)
def test_a_budget_that_is_used_up_ends_the_search(
    tmp_path: Path, diary: TrialLog, budget: dict[str, Any], machine: dict[str, Any], why: str
):
    search = a_search(tmp_path, {"budget": budget}, cluster={"machine": machine})
    told: list[str] = []
    diary.write(diary.records[0], tokens=81, seconds=3601.0)
    assert BudgetStopper(search, diary, told.append).stop_all()
    assert why in told[0]
    assert not BudgetStopper(a_search(tmp_path), diary, told.append).stop_all()


def test_a_trial_is_charged_for_the_machines_of_its_own_workers(tmp_path: Path, diary: TrialLog):
    machine = {"price_per_hour": 1.0, "workers_per_node": 1}
    space = {"cluster.workers": {"choice": [1, 4]}}
    search = a_search(
        tmp_path, {"budget": {"cost": 3}, "space": space}, cluster={"machine": machine}
    )
    diary.write(diary.records[0], config={"cluster.workers": 1}, seconds=3600.0)
    assert describe_spent_budget(search, diary) is None
    diary.write(diary.records[0], config={"cluster.workers": 4})
    assert describe_spent_budget(search, diary) is not None
