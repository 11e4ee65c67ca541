"""What the callbacks of Tune record: shared results that stay, and the reasons of failures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from jobs.search.trial_log import TrialLog
from jobs.search.trial_record import TrialRecord
from jobs.search.tune.trial_task import TASK_KEY, TrialReport
from jobs.search.tune.tune_callback import BudgetStopper, TrialRecorder, describe_spent_budget
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from tests.jobs.search.specs import a_search


@dataclass(frozen=True)
class FakeTask:
    """The part of a task that the recorder reads."""

    number: int = 0


@dataclass
class FakeTrial:
    """The part of Tune's trial that the recorder reads."""

    error: Exception | None = None

    @property
    def config(self) -> dict[str, Any]:
        return {TASK_KEY: FakeTask()}

    def get_pickled_error(self) -> Exception | None:
        return self.error


def make_result(step: int, **more: Any) -> dict[str, Any]:
    report = TrialReport(step, tokens=10 * step, **more)
    return {"report": report, "step": step, "metric": 1 / max(step, 1)}


@pytest.fixture
def trial_log(tmp_path: Path) -> TrialLog:
    log = TrialLog(RunStore(DirectoryStore(tmp_path), "search"))
    log.write(TrialRecord(0, {"method.rank": 2}, status="running"))
    return log


def make_recorder(
    folder: Path, trial_log: TrialLog, changes: list[TrialRecord] | None = None
) -> TrialRecorder:
    return TrialRecorder(
        a_search(folder), trial_log, [].append if changes is None else changes.append
    )


def test_the_shared_results_of_a_trial_stay_recorded_after_a_restart(
    tmp_path: Path, trial_log: TrialLog
):
    recorder = make_recorder(tmp_path, trial_log)
    recorder.on_trial_result(
        1, [], FakeTrial(), make_result(4, reused=("sparse_stage", "first_evaluation"))
    )
    recorder.on_trial_result(2, [], FakeTrial(), make_result(8))
    assert trial_log.records[0].shared == ("sparse_stage", "first_evaluation")
    assert trial_log.records[0].curve == ((4, 0.25), (8, 0.125))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(RayTaskError("step", "long trace", OSError("no space\n left")),
                     "OSError: no space left", id="an error of the trial's own actor"),
        pytest.param(None, "its process died more often than cluster.max_failures allows",
                     id="a process that died"),
    ],
)  # fmt: skip
def test_a_trial_that_tune_gave_up_has_its_reason(
    tmp_path: Path, trial_log: TrialLog, error: Exception | None, reason: str
):
    changes: list[TrialRecord] = []
    make_recorder(tmp_path, trial_log, changes).on_trial_error(1, [], FakeTrial(error))
    assert [(row.status, row.reason) for row in changes] == [("failed", reason)]


def test_a_trial_that_failed_keeps_its_curve_and_ends_with_its_reason(
    tmp_path: Path, trial_log: TrialLog
):
    recorder = make_recorder(tmp_path, trial_log)
    recorder.on_trial_result(1, [], FakeTrial(), make_result(4))
    failed = make_result(0, failure="out of memory", ended=True)
    del failed["metric"]
    recorder.on_trial_result(2, [], FakeTrial(), failed)
    [row] = trial_log.records
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
def test_a_spent_budget_ends_the_search(
    tmp_path: Path, trial_log: TrialLog, budget: dict[str, Any], machine: dict[str, Any], why: str
):
    search = a_search(tmp_path, {"budget": budget}, cluster={"machine": machine})
    reasons: list[str] = []
    trial_log.write(trial_log.records[0], tokens=81, seconds=3601.0)
    assert BudgetStopper(search, trial_log, reasons.append).stop_all()
    assert why in reasons[0]
    assert not BudgetStopper(a_search(tmp_path), trial_log, reasons.append).stop_all()


def test_a_trial_is_charged_for_the_machines_of_its_own_workers(
    tmp_path: Path, trial_log: TrialLog
):
    machine = {"price_per_hour": 1.0, "workers_per_node": 1}
    space = {"cluster.workers": {"choice": [1, 4]}}
    search = a_search(
        tmp_path, {"budget": {"cost": 3}, "space": space}, cluster={"machine": machine}
    )
    trial_log.write(trial_log.records[0], config={"cluster.workers": 1}, seconds=3600.0)
    assert describe_spent_budget(search, trial_log) is None
    trial_log.write(trial_log.records[0], config={"cluster.workers": 4})
    assert describe_spent_budget(search, trial_log) is not None
