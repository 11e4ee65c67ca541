"""The measurement of `model.dtype: auto`."""

from __future__ import annotations

import itertools

import pytest
import torch

from jobs.train.model import dtype_probe
from jobs.train.model.dtype_probe import measure_products


def test_both_types_are_measured_and_the_threads_restored():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    seconds = measure_products(tokens=8, rows=32, columns=16)
    assert seconds.keys() == {"float32_s", "bfloat16_s"} and all(
        0 < value < float("inf") for value in seconds.values()
    )
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_what_other_work_takes_does_not_count(monkeypatch: pytest.MonkeyPatch):
    clock = itertools.count(0.0, 0.5)
    monkeypatch.setattr(dtype_probe.time, "thread_time", lambda: next(clock))
    assert measure_products(tokens=8, rows=32, columns=16) == {"float32_s": 0.5, "bfloat16_s": 0.5}
