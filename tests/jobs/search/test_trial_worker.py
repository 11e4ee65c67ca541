"""How a worker of a search separates the decisions and reports of several starts."""

from __future__ import annotations

import os

import pytest

from jobs.search.tune.trial_task import TrialReport, reject_nonfinite_metric
from jobs.search.tune.trial_worker import TrialWorker


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> TrialWorker:
    # A worker has a process of its own, and sets its environment.
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return TrialWorker(threads=1, gpu=False)


def test_a_late_decision_on_one_start_does_not_end_the_next(worker: TrialWorker):
    worker._start_number = 2
    worker.continue_or_stop(1, False)
    worker.continue_or_stop(2, True)
    assert worker._exchange_report(TrialReport(4, {"loss": 1.0}, 10))


def test_a_report_of_a_stopped_start_is_dropped(worker: TrialWorker):
    last = TrialReport(8, {"loss": 1.0}, 10)
    worker._reports.put((1, TrialReport(4, {}, 0, ended=True)))
    worker._reports.put((2, last))
    assert worker.wait_for_report(2) == last


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_fails_the_trial_and_names_the_step(value: float):
    ended = reject_nonfinite_metric(TrialReport(4, {"loss": value, "tokens": 3.0}, 10), "loss")
    assert ended.ended and not ended.metrics
    assert ended.failure == f"its loss became {value} at step 4"


def test_other_metrics_may_be_infinite():
    report = TrialReport(4, {"loss": 1.0, "perplexity": float("inf")}, 10)
    assert reject_nonfinite_metric(report, "loss") == report
    assert reject_nonfinite_metric(TrialReport(ended=True), "loss").failure == ""
