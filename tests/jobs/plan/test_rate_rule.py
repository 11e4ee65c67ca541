"""The rule of `learning_rate: auto`, its fit, and what a spec's rates become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.plan.plan import make_plan
from jobs.plan.rate_choice import choose_rates, set_rates
from jobs.plan.rate_rule import (
    BASE,
    FACTOR,
    MAX_RATE,
    RateSubject,
    compute_head_rate,
    compute_rule_rate,
)
from jobs.spec.load import validate_spec
from jobs.spec.schema import RunSpec
from tests.benchmarks.rates import PAGE, fit_rule, format_table, read_grids, replace_part
from tests.jobs.plan.plans import SHAPE
from tests.tiny import tiny_spec

CLASSIFY = {"task": "sequence-classification"}


def make_open_spec(method: dict[str, Any] | None = None, **train: Any) -> RunSpec:
    raw = tiny_spec(Path("/made/up"), method=method or {}, model=CLASSIFY)
    raw["train"] = {"steps": 6, **train}
    return validate_spec(raw)


def settle(spec: RunSpec, *, keeps_head: bool = False) -> tuple[Any, ...]:
    choice = choose_rates(spec, hidden=384, keeps_head=keeps_head)
    train = set_rates(spec, choice).train
    return train.learning_rate, train.sparse_learning_rate, train.head_learning_rate, choice.by_rule


def test_the_constants_are_those_that_the_measured_grids_give():
    base, factor = fit_rule(read_grids())
    assert base == BASE and factor == FACTOR, "run `python -m tests.benchmarks.rates --write`"


def test_the_page_states_the_rule_s_error_on_every_grid():
    text = PAGE.read_text()
    assert replace_part(text, format_table(read_grids())) == text


def test_no_plain_rate_is_further_from_a_measured_one_than_a_grid_s_step():
    """Factor 2.5 is the widest step of the grids."""
    for grid in read_grids():
        ratio = compute_rule_rate(grid.subject) / grid.best
        assert grid.row["data"] == "not here" or 1 / 2.5 <= ratio <= 2.5, grid.describe()


def test_a_rate_falls_with_width_and_density_and_stops_at_the_largest_that_converged():
    def rate(**changes: Any) -> float:
        return compute_rule_rate(RateSubject("entries", "classifier", 768, **changes))

    assert rate(share=0.1) == pytest.approx(10 * rate(), rel=0.05)
    assert rate(share=1e-5) == MAX_RATE
    wide = RateSubject("factors", "language model", 4096)
    narrow = RateSubject("factors", "language model", 512)
    assert compute_rule_rate(narrow) / compute_rule_rate(wide) == pytest.approx(8**0.781, rel=0.05)
    assert [compute_head_rate(hidden) for hidden in (64, 384, 3840)] == [2e-2, 2e-2, 2e-3]


def test_open_rates_are_settled_and_set_ones_stay():
    both = ("learning_rate", "sparse_learning_rate", "head_learning_rate")
    low_rank, sparse, head, keys = settle(make_open_spec({"density": 0.0156}))
    assert keys == both and head == 2e-2
    assert low_rank == compute_rule_rate(RateSubject("factors", "classifier", 384))
    assert sparse == compute_rule_rate(RateSubject("entries", "classifier", 384, 0.0156))
    only_sparse = settle(make_open_spec({"kind": "sparse", "density": 0.0156}))
    assert only_sparse == (sparse, None, 2e-2, ("learning_rate", "head_learning_rate"))
    # A number is the rate of both stages, as it was before the rule.
    assert settle(make_open_spec(learning_rate=0.1))[:2] == (0.1, None)
    opened = make_open_spec({"density": 0.0156}, learning_rate=0.1, sparse_learning_rate="auto")
    assert settle(opened)[:2] == (0.1, sparse)
    assert settle(make_open_spec({"kind": "lora"}, sparse_learning_rate="auto"))[1] is None
    assert settle(make_open_spec(), keeps_head=True)[2] is None
    kept = make_open_spec(learning_rate=0.1, head_learning_rate=0.2)
    assert settle(kept) == (0.1, None, 0.2, ())


def test_a_plan_is_not_made_of_open_rates():
    with pytest.raises(AssertionError, match="choose the rates"):
        make_plan(make_open_spec(), SHAPE)
