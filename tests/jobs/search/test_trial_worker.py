"""What a worker of a search does with verdicts and reports of several starts."""

from __future__ import annotations

import os

import pytest

from jobs.search.tune.trial_task import TrialReport, reject_nonfinite_metric
from jobs.search.tune.trial_worker import TrialWorker


@pytest.fixture
def seat(monkeypatch: pytest.MonkeyPatch) -> TrialWorker:
    # A worker has its process for itself, and sets its environment.
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return TrialWorker(threads=1, gpu=False)


def test_a_verdict_that_came_too_late_for_one_start_does_not_end_the_next(seat: TrialWorker):
    seat._start_number = 2
    seat.verdict(1, False)
    seat.verdict(2, True)
    assert seat._exchange_report(TrialReport(4, {"loss": 1.0}, 10))


def test_a_report_of_a_start_that_was_stopped_is_nobodys(seat: TrialWorker):
    last = TrialReport(8, {"loss": 1.0}, 10)
    seat._reports.put((1, TrialReport(4, {}, 0, ended=True)))
    seat._reports.put((2, last))
    assert seat.next_report(2) == last


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_no_number_ends_the_trial_with_its_step(value: float):
    ended = reject_nonfinite_metric(TrialReport(4, {"loss": value, "tokens": 3.0}, 10), "loss")
    assert ended.ended and not ended.metrics
    assert ended.failure == f"its loss became {value} at step 4"


def test_other_metrics_may_be_what_they_are():
    report = TrialReport(4, {"loss": 1.0, "perplexity": float("inf")}, 10)
    assert reject_nonfinite_metric(report, "loss") == report
    assert reject_nonfinite_metric(TrialReport(0, {}, 0, ended=True), "loss").failure == ""
