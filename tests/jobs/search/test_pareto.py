"""The Pareto front over quality and costs, counted by hand."""

from __future__ import annotations

from math import inf, nan

import pytest

from jobs.search.report.pareto import find_best, find_front
from tests.jobs.search.builders import row, search


def test_a_trial_that_is_worse_in_nothing_and_better_in_something_dominates():
    rows = [row(0, 1.0), row(1, 1.0, adapter_bytes=2e6), row(2, 2.0), row(3, 0.5)]
    assert find_front(rows, "min") == [3]


def test_a_better_metric_or_any_smaller_cost_is_on_the_front():
    rows = [
        row(0, 1.0),
        row(1, 0.9, trainable_share=0.02),
        row(2, 2.0, node_bytes=5e5),
        row(3, 2.0, adapter_bytes=5e5),
        row(4, 2.0, trainable_share=0.005),
        row(5, 2.0),
    ]
    assert find_front(rows, "min") == [0, 1, 2, 3, 4]


def test_a_larger_metric_is_better_where_the_search_says_so():
    rows = [row(0, 0.6), row(1, 0.7)]
    assert find_front(rows, "max") == [1] and find_front(rows, "min") == [0]


def test_equal_trials_share_the_front():
    assert find_front([row(4), row(2)], "min") == [2, 4]


@pytest.mark.parametrize("cost", ["trainable_share", "node_bytes", "adapter_bytes"])
def test_a_trial_of_unknown_cost_is_not_on_the_front_and_dominates_none(cost: str):
    assert find_front([row(0, 0.1, **{cost: None}), row(1, 1.0)], "min") == [1]


@pytest.mark.parametrize("status", ["waiting", "running", "failed", "rejected"])
def test_only_trials_that_ended_well_are_compared(status: str):
    rows = [row(0, 0.1, status=status), row(1, 1.0, status="stopped")]
    assert find_front(rows, "min") == [1]
    assert find_best(rows, "min") is None


def test_the_best_trial_is_a_completed_one():
    rows = [row(0, 0.1, status="stopped"), row(1, 1.0), row(2, 0.5), row(3, 0.5)]
    best_trial = find_best(rows, "min")
    assert best_trial is not None and best_trial.number == 2


@pytest.mark.parametrize("metric", [None, nan, inf, -inf])
def test_a_metric_that_is_not_finite_is_not_compared(metric: float | None):
    rows = [row(0, metric), row(1, 1.0)]
    assert find_front(rows, "min") == [1] and find_front(rows, "max") == [1]
    assert find_front([row(0, metric)], "max") == [] and find_best([row(0, metric)], "max") is None


def test_a_cost_of_zero_is_compared():
    assert find_front([row(0, node_bytes=0.0), row(1)], "min") == [0]


def test_of_two_equal_trials_the_first_is_the_best():
    best_trial = find_best([row(3, 1.0), row(1, 1.0), row(2, 2.0)], "min")
    assert best_trial is not None and best_trial.number == 1


def test_the_best_trial_is_on_the_front():
    rows = search(40)
    best_trial = find_best(rows, "min")
    assert best_trial is not None and best_trial.number in find_front(rows, "min")
