"""The measurement of `model.dtype: auto`: products of a model's size in float32 and bfloat16."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

DTYPES = (torch.float32, torch.bfloat16)
BUDGET_S = 0.3
MIN_ROUNDS, MAX_ROUNDS = 3, 20


def measure_products(*, tokens: int, rows: int, columns: int) -> dict[str, float]:
    """Return the seconds of a layer's product and of its gradient's, in float32 and in bfloat16.

    They are processor time of one thread: a busy machine, where a round may wait for its turn many
    times longer than it computes, gives the same. The types take turns, and each one's best round
    counts. The first round, which makes oneDNN's kernels, does not.
    """
    with _use_one_thread(), torch.inference_mode():
        operands = {dtype: _draw_operands(tokens, rows, columns, dtype) for dtype in DTYPES}
        steps = {dtype: _make_step(*operands[dtype]) for dtype in DTYPES}
        for step in steps.values():
            step()
        best = dict.fromkeys(DTYPES, float("inf"))
        deadline = time.perf_counter() + BUDGET_S
        for number in range(MAX_ROUNDS):
            if number >= MIN_ROUNDS and time.perf_counter() > deadline:
                break
            for dtype, step in steps.items():
                start = time.thread_time()
                step()
                best[dtype] = min(best[dtype], time.thread_time() - start)
    return {"float32_s": best[torch.float32], "bfloat16_s": best[torch.bfloat16]}


def _draw_operands(tokens: int, rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the input `[N, I]`, the weight `[O, I]` and the output's gradient `[N, O]`."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((tokens, columns), (rows, columns), (tokens, rows))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def _make_step(x_NI: Tensor, weight_OI: Tensor, grad_NO: Tensor) -> Callable[[], Any]:
    return lambda: (linear(x_NI, weight_OI), grad_NO @ weight_OI)


@contextmanager
def _use_one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
