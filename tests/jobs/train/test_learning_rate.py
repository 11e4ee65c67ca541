"""The learning rate of a step: a rise without a zero, then a decay."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.train.engine.learning_rate import compute_rate


def rates(steps: int, *, warmup: float, schedule: str, peak: float = 1.0) -> list[float]:
    return [
        compute_rate(step, steps=steps, peak=peak, warmup=warmup, schedule=schedule)
        for step in range(steps)
    ]


TABLES = {
    "constant": (4, 0.0, "constant", [1, 1, 1, 1]),
    "linear": (4, 0.0, "linear", [1, 0.75, 0.5, 0.25]),
    "cosine": (4, 0.0, "cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    "warm-up of half, then constant": (6, 0.5, "constant", [0.25, 0.5, 0.75, 1, 1, 1]),
    "warm-up of one, then linear": (5, 0.2, "linear", [0.5, 1, 0.75, 0.5, 0.25]),
    "a warm-up is rounded up": (10, 0.03, "constant", [0.5] + [1] * 9),
    "a single step": (1, 0.0, "cosine", [1]),
    "a single step that warms up": (1, 0.5, "cosine", [0.5]),
}


@pytest.mark.parametrize(("steps", "warmup", "schedule", "expected"), TABLES.values(), ids=TABLES)
def test_the_rate_of_each_step(steps: int, warmup: float, schedule: str, expected: list[float]):
    assert rates(steps, warmup=warmup, schedule=schedule) == pytest.approx(expected)


@given(
    steps=st.integers(1, 200),
    warmup=st.floats(0, 0.99),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    peak=st.floats(1e-6, 10),
)
def test_no_step_is_wasted_and_none_is_above_the_peak(
    steps: int, warmup: float, schedule: str, peak: float
):
    computed = rates(steps, warmup=warmup, schedule=schedule, peak=peak)
    assert all(0 < rate <= peak * (1 + 1e-9) for rate in computed)
    top = computed.index(max(computed))
    assert computed[:top] == sorted(computed[:top])
    assert computed[top:] == sorted(computed[top:], reverse=True)
