"""The measurement of `model.dtype: auto`."""

from __future__ import annotations

import torch

from jobs.train.model.dtype_probe import measure_products


def test_both_types_are_measured_and_the_threads_restored():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    seconds = measure_products(tokens=8, rows=32, columns=16)
    assert seconds.keys() == {"float32_s", "bfloat16_s"} and all(
        0 < value < float("inf") for value in seconds.values()
    )
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
