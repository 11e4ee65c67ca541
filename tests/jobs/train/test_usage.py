"""The peak memory of a worker, and its reset when a worker that has run before starts again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ranks import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]
PIECE = 300_000_000


def _measure(rank: int) -> tuple[int, int, int]:
    from jobs.train.comm.collectives import WorkerContext
    from jobs.train.monitor.usage import gather_memory_peaks, reset_memory_peak

    context = WorkerContext(0, 1, torch.device("cpu"))

    def read() -> int:
        peaks: dict[str, dict[str, Any]] = gather_memory_peaks(context)
        return int(peaks["0"]["peak"])

    before = read()
    piece = torch.ones(PIECE, dtype=torch.uint8)
    del piece
    during = read()
    reset_memory_peak(context.device)
    return before, during, read()


def test_a_peak_is_the_most_that_was_held_since_the_last_reset():
    ((before, during, after),) = run_ranks(_measure, 1)
    assert during >= before + 0.9 * PIECE
    assert after <= during - 0.9 * PIECE
