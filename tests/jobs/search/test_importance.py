"""Which key mattered, where the answer is known because the metric was made from it."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pytest

from jobs.search.report.importance import plot_importances
from jobs.search.report.pareto import Mode
from jobs.search.report.study import build_study
from jobs.search.trial_record import TrialRecord
from tests.jobs.search.builders import row

ROOT = Path(__file__).parents[3]


def importances(records: list[TrialRecord], mode: Mode) -> dict[str, float]:
    """The shares in the figure, the largest first."""
    figure = plot_importances(build_study(records, mode), "loss")
    if figure is None:
        return {}
    (bars,) = figure.data
    return dict(list(zip(bars.y, bars.x, strict=True))[::-1])


def trials(count: int, **space: list[Any]) -> list[TrialRecord]:
    """Each key drawn alone; the metric is the distance of the first one from its middle value."""
    draw = random.Random(0)
    first, middle = next(iter(space)), {}
    for key, values in space.items():
        middle[key] = values[len(values) // 2]
    rows = []
    for number in range(count):
        config = {key: draw.choice(values) for key, values in space.items()}
        far = abs(space[first].index(config[first]) - space[first].index(middle[first]))
        rows.append(row(number, far + 0.01 * draw.random(), config=config))
    return rows


@pytest.mark.parametrize(
    "values",
    [[2, 4, 8, 16], ["random", "fisher", "rows"], [1e-4 * 1.1**i for i in range(50)]],
    ids=["a choice of numbers", "a choice of words", "a range"],
)
def test_the_key_that_makes_the_metric_has_the_largest_share(values: list[Any]):
    shares = importances(trials(60, key=values, other=[1, 2, 3], third=["a", "b"]), "min")
    assert next(iter(shares)) == "key" and shares["key"] > 0.5
    assert set(shares) == {"key", "other", "third"} and sum(shares.values()) == pytest.approx(1)


def test_the_mode_decides_which_trials_are_the_best():
    # The worst trials are those of one `a`; among the others `b` decides.
    values = [(n % 4, n % 3, 10.0 if n % 4 == 3 else n % 3 + 0.001 * n) for n in range(48)]
    rows = [row(n, metric, config={"a": a, "b": b}) for n, (a, b, metric) in enumerate(values)]
    turned = [row(r.number, -(r.metric or 0), config=r.config) for r in rows]
    assert importances(rows, "max") == pytest.approx(importances(turned, "min"))
    assert importances(rows, "min")["b"] > 0.6
    assert importances([r for r in rows if r.config["b"] != 1], "max")["a"] > 0.9


def test_if_the_best_quarter_is_as_good_as_all_there_are_no_shares():
    rows = [row(n, float(n > 40), config={"a": n, "b": n % 2}) for n in range(48)]
    assert importances(rows, "max") == {} and importances(rows, "min") != {}
    assert importances([row(n, 0.5, config={"a": n}) for n in range(9)], "min") == {}


def test_too_few_trials_with_a_metric_have_no_shares():
    rows = [row(n, float(n), config={"a": n}) for n in range(3)]
    assert importances([*rows, row(3, None), row(4, nan)], "min") == {}
    assert importances([*rows, row(3, 3.0, config={"a": 3})], "min") == {"a": 1.0}
    assert importances([], "min") == {}


def test_a_key_of_one_value_has_no_share():
    rows = [row(n, float(n), config={"a": n, "b": 8}) for n in range(9)]
    assert importances(rows, "min") == {"a": 1.0}
    assert importances([row(n, float(n)) for n in range(9)], "min") == {}


def test_values_of_any_kind_are_distinguished():
    values = [None, True, 8, "8", ["q", "v"], {"min": 1}, 0.5]
    rows = [row(n, float(n % 7), config={"a": values[n % 7], "b": n % 2}) for n in range(28)]
    assert set(importances(rows, "min")) == {"a", "b"}


def test_a_key_that_some_trials_lack_is_judged_by_the_others():
    rows = [row(n, float(n), config={"a": n} | ({"b": n % 5} if n % 2 else {})) for n in range(20)]
    assert set(importances(rows, "min")) == {"a", "b"}


@pytest.mark.parametrize("has", [lambda n: n == 3, lambda n: n != 3], ids=["has", "lacks"])
def test_a_key_that_a_single_trial_has_or_lacks_has_no_share(has: Callable[[int], bool]):
    rows = [row(n, float(n), config={"a": n} | ({"b": n % 5} if has(n) else {})) for n in range(20)]
    assert importances(rows, "min") == {"a": 1.0}


def test_the_report_prints_nothing_and_warns_of_nothing():
    program = (
        "from jobs.search.report.html_report import render_report;"
        " from tests.jobs.search.builders import search;"
        " page = render_report(search(12), name='chat', metric='loss', mode='max');"
        " print(page.count('<h2>'))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.stdout, done.stderr) == ("8\n", "")
