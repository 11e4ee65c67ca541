"""The gate as a table: metrics in, verdict out."""

from __future__ import annotations

import math
from typing import Any

import pytest

from jobs.retrain.gate import apply_gate
from jobs.spec.sections.retrain import GateSection
from jobs.train.request import HELD_OUT, PREVIOUS_EVAL

NAN, INF = math.nan, math.inf
Pair = tuple[float | None, float | None]
CASES: dict[str, tuple[dict[str, Any], Pair, Pair, bool]] = {
    "better on both": ({}, (1.0, 1.0), (1.1, 1.1), True),
    "equal": ({}, (1.1, 1.1), (1.1, 1.1), True),
    "worse": ({}, (1.2, 1.0), (1.1, 1.1), False),
    "a little worse, and allowed": ({"better_by": -0.2}, (1.2, 1.0), (1.1, 1.1), True),
    "not better by enough": ({"better_by": 0.2}, (1.0, 1.0), (1.1, 1.1), False),
    "forgets too much": ({}, (1.0, 1.2), (1.1, 1.1), False),
    "forgets as much as it may": ({"tolerance": 0.25}, (1.0, 1.25), (1.1, 1.0), True),
    "forgetting is not checked": ({"tolerance": None}, (1.0, 9.0), (1.1, 1.1), True),
    "misses the target": ({"target": 0.5}, (1.0, 1.0), (1.1, 1.1), False),
    "reaches the target": ({"target": 1.0}, (1.0, 1.0), (1.1, 1.1), True),
    "the target alone": ({"baseline": "none", "target": 1.5}, (1.4, 9.0), (1.0, 1.0), True),
    "compared with nothing": ({"baseline": "none"}, (9.0, 9.0), (1.0, 1.0), True),
    "no number": ({"baseline": "none"}, (NAN, 1.0), (1.0, 1.0), False),
    "nothing measured": ({}, (None, 1.0), (1.1, 1.1), False),
    "an infinite loss": ({"better_by": -1e9}, (INF, 1.0), (1.1, 1.1), False),
    "no number on the old rows": ({}, (1.0, NAN), (1.1, 1.1), False),
    "a baseline without a number": ({}, (1.0, 1.0), (NAN, 1.1), False),
    "a baseline without a number on its rows": ({}, (1.0, 1.0), (1.1, None), False),
    "accuracy rises": ({"metric": "eval_accuracy"}, (0.8, 0.7), (0.7, 0.7), True),
    "accuracy falls": ({"metric": "eval_accuracy"}, (0.6, 0.7), (0.7, 0.7), False),
    "accuracy by enough": (
        {"metric": "eval_accuracy", "better_by": 0.0625}, (0.75, 0.7), (0.6875, 0.7), True),
    "accuracy forgets": (
        {"metric": "eval_accuracy", "tolerance": 0.1}, (0.8, 0.6), (0.7, 0.7), False),
    "a loss below zero is not worse for it": ({"tolerance": 0.5}, (-2.0, -0.6), (-1.0, -1.0), True),
}  # fmt: skip


@pytest.mark.parametrize(("gate", "new", "baseline", "passes"), CASES.values(), ids=CASES)
def test_what_passes_the_gate(gate, new, baseline, passes):
    sets = (HELD_OUT, PREVIOUS_EVAL)
    verdict = apply_gate(
        GateSection(**gate),
        dict(zip(sets, new, strict=True)),
        dict(zip(sets, baseline, strict=True)),
    )
    assert verdict.passed is passes
    assert bool(verdict.reason) is not passes


def test_a_first_adapter_only_has_to_be_a_number():
    assert apply_gate(GateSection(), {HELD_OUT: 9.0}, None).passed
    assert not apply_gate(GateSection(), {HELD_OUT: NAN}, None).passed


@pytest.mark.parametrize(("missing_rows", "passes"), [("ignore", True), ("refuse", False)])
def test_missing_rows_are_reported_and_count_as_the_gate_says(missing_rows, passes):
    gate = GateSection(missing_rows=missing_rows)
    verdict = apply_gate(
        gate, {HELD_OUT: 1.0}, {HELD_OUT: 1.0}, missing_reason="the file was changed"
    )
    assert verdict.passed is passes
    assert any("the file was changed" in check.requirement for check in verdict.checks)


def test_the_reason_has_the_numbers():
    reason = apply_gate(
        GateSection(), {HELD_OUT: 1.5, PREVIOUS_EVAL: 1.0}, {HELD_OUT: 1.25, PREVIOUS_EVAL: 1.0}
    ).reason
    assert "1.5000" in reason
    assert "1.2500" in reason
    assert "held-out" in reason
