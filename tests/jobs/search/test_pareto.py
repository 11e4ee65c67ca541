"""The Pareto front over quality and costs, counted by hand."""

from __future__ import annotations

from math import inf, nan

import pytest

from jobs.search.report.pareto import find_best, find_front
from tests.jobs.search.builders import row, search


def test_a_trial_that_is_worse_in_nothing_and_better_in_one_thing_takes_the_place():
    rows = [row(0, 1.0), row(1, 1.0, adapter_bytes=2e6), row(2, 2.0), row(3, 0.5)]
    assert find_front(rows, "min") == [3]


def test_a_better_metric_and_each_smaller_cost_earn_a_place():
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


def test_trials_that_are_alike_share_the_front():
    assert find_front([row(4), row(2)], "min") == [2, 4]


@pytest.mark.parametrize("cost", ["trainable_share", "node_bytes", "adapter_bytes"])
def test_a_trial_of_unknown_cost_neither_stands_on_the_front_nor_hides_another(cost: str):
    assert find_front([row(0, 0.1, **{cost: None}), row(1, 1.0)], "min") == [1]


@pytest.mark.parametrize("status", ["waiting", "running", "failed", "rejected"])
def test_only_trials_that_ended_well_are_compared(status: str):
    rows = [row(0, 0.1, status=status), row(1, 1.0, status="stopped")]
    assert find_front(rows, "min") == [1]
    assert find_best(rows, "min") is None


def test_the_best_trained_to_its_end():
    rows = [row(0, 0.1, status="stopped"), row(1, 1.0), row(2, 0.5), row(3, 0.5)]
    found = find_best(rows, "min")
    assert found is not None and found.number == 2


@pytest.mark.parametrize("metric", [None, nan, inf, -inf])
def test_a_metric_that_is_no_number_is_no_quality(metric: float | None):
    rows = [row(0, metric), row(1, 1.0)]
    assert find_front(rows, "min") == [1] and find_front(rows, "max") == [1]
    assert find_front([row(0, metric)], "max") == [] and find_best([row(0, metric)], "max") is None


def test_a_cost_of_nothing_is_a_cost_that_can_be_compared():
    assert find_front([row(0, node_bytes=0.0), row(1)], "min") == [0]


def test_the_best_is_the_earlier_one_of_two_alike():
    found = find_best([row(3, 1.0), row(1, 1.0), row(2, 2.0)], "min")
    assert found is not None and found.number == 1


def test_the_best_is_on_the_front_of_a_whole_search():
    rows = search(40)
    found = find_best(rows, "min")
    assert found is not None and found.number in find_front(rows, "min")
