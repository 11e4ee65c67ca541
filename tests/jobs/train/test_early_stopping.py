"""Early stopping: a table of metrics and reasons."""

from __future__ import annotations

import math
from typing import Any

import pytest

from jobs.spec.load import validate_spec
from jobs.spec.sections.training import StopSection
from jobs.train.early_stopping import (
    EarlyStopping,
    StoppingState,
    check_budget,
    describe_stop,
    find_stop_faults,
    update_state,
)

NAN = math.nan


@pytest.mark.parametrize(
    ("budget", "tokens", "over"),
    [(None, 10**9, False), (100, 99, False), (100, 100, True), (100, 130, True)],
)
def test_a_token_budget_ends_the_training_when_it_is_reached(
    budget: int | None, tokens: int, over: bool
):
    assert (check_budget(StopSection(tokens=budget), tokens) is not None) is over


JUDGED: dict[str, tuple[dict[str, Any], list[float], str]] = {
    "nothing asked": ({}, [3.0, 3.0, NAN], "goes on"),
    "a target is met": ({"target": 2.0}, [3.0, 2.0], "meets the target of 2"),
    "a target is not met": ({"target": 2.0}, [3.0, 2.01], "goes on"),
    "what is no number meets none": ({"target": 2.0}, [NAN], "goes on"),
    "higher accuracy is better": (
        {"metric": "eval_accuracy", "target": 0.5}, [0.4, 0.6], "meets the target"),
    "it improves": ({"patience": 2}, [3.0, 2.9, 2.8, 2.7], "goes on"),
    "it no longer does": ({"patience": 2}, [3.0, 2.9, 2.9, 3.1], "not improve in 2 evaluations"),
    "the count begins anew": ({"patience": 2}, [3.0, 3.1, 2.9, 3.0], "goes on"),
    "numbers that are none": ({"patience": 2}, [3.0, NAN, NAN], "not improve in 2"),
}  # fmt: skip


@pytest.mark.parametrize(("stop_values", "values", "reasons"), JUDGED.values(), ids=JUDGED)
def test_a_stage_ends_by_its_evaluations(stop_values: dict[str, Any], values: list[float], reasons):
    stop, standing, why = StopSection(**stop_values), StoppingState(), None
    for value in values:
        assert why is None
        measured = {"loss": value, "accuracy": value}
        standing, why = update_state(stop, standing, measured)
    assert reasons in (why or "goes on")


def test_ended_stages_are_truncated_and_stay_so_after_a_restore():
    stopping, lengths = EarlyStopping(StopSection(tokens=5)), {"sparse": 6, "low-rank": 14}
    assert stopping.end_stages(lengths, 4)
    restored = EarlyStopping(StopSection(tokens=5))
    restored.restore(stopping.to_dict())
    for each in (stopping, restored):
        assert [each.limit_length(name, length) for name, length in lengths.items()] == [4, 0]


def test_the_last_step_of_the_last_stage_saves_nothing():
    stopping = EarlyStopping(StopSection(tokens=5))
    assert not stopping.end_stages({"low-rank": 14}, 14)
    assert stopping.limit_length("low-rank", 14) == 14


def test_a_new_stage_starts_its_count_again():
    stopping = EarlyStopping(StopSection(patience=1))
    assert stopping.update({"loss": 1.0}) is None
    stopping.start_stage()
    assert stopping.update({"loss": 2.0}) is None
    assert stopping.update({"loss": 2.0}) is not None


def _spec(stop: dict[str, Any], **more: Any) -> dict[str, Any]:
    train = {"steps": 4, "eval_every": 2, "stop": stop} | more.pop("train", {})
    data = {"train": "x.jsonl", "eval": "y.jsonl"} | more.pop("data", {})
    return {"name": "a", "model": {"path": "m", "task": "causal-lm"}, "data": data, "train": train,
            **more}  # fmt: skip


NEVER: dict[str, tuple[dict[str, Any], list[str]]] = {
    "tokens need nothing": (
        _spec({"tokens": 9}, data={"eval": None}, train={"eval_every": None}), []),
    "a target needs evaluations": (
        _spec({"target": 1.0}, data={"eval": None}, train={"eval_every": None}),
        ["data.eval", "train.eval_every"]),
    "patience is enough to ask": (
        _spec({"patience": 2}, train={"eval_every": None}), ["train.eval_every"]),
    "a metric of another task": (
        _spec({"patience": 2, "metric": "eval_accuracy"}), ["train.stop.metric"]),
    "gates": (
        _spec({"tokens": 9}, method={"factor_pruning": "gates", "factor_density": 0.5}),
        ["train.stop"]),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "keys"), NEVER.values(), ids=NEVER)
def test_a_condition_that_could_never_be_met_is_an_error_before_the_start(
    raw: dict[str, Any], keys: list[str]
):
    assert [fault.key for fault in find_stop_faults(validate_spec(raw))] == keys


def test_the_conditions_are_described_in_words():
    stop = StopSection(tokens=5000, target=2.0, patience=3)
    assert describe_stop(stop) == [
        "5,000 tokens", "eval_loss 2 reached", "3 evaluations without a better eval_loss",
    ]  # fmt: skip
    assert describe_stop(StopSection()) == []
