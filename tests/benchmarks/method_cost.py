"""`python -m tests.benchmarks.method_cost [--json]`: what a mask and a hand-off of one layer cost.

Against limits: a random mask of a large layer in time and in memory, and the hand-off of a square
one. Medians; memory by tracemalloc, which sees NumPy's arrays, in units of the mask's own index.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from slora.handoff.handoff import split_sparse_update
from slora.masks.mask import draw_random_mask

RUNS = 7
LARGE, SQUARE = (4096, 14336), (2048, 2048)
DENSITY, RANK = 0.01, 16


def main() -> int:
    """Exit code 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    measured = {
        "mask 4096 x 14336, 1 %: seconds": (_mask_seconds(), 0.2),
        "mask 4096 x 14336, 1 %: x index memory": (_mask_memory(), 3.0),
        "hand-off 2048 x 2048, rank 16: seconds": (_handoff_seconds(), 0.5),
    }
    if asked.json:
        print(json.dumps({name: value for name, (value, _) in measured.items()}))
    else:
        table = Table("what", "median", "limit")
        for name, (value, limit) in measured.items():
            table.add_row(name, f"{value:.3f}", f"{limit:g}")
        Console(width=80).print(table)
    return int(any(value > limit for value, limit in measured.values()))


def _large_mask() -> object:
    return draw_random_mask(seed=0, name="layer", shape=LARGE, density=DENSITY)


def _mask_seconds() -> float:
    return _median_seconds(_large_mask)


def _mask_memory() -> float:
    tracemalloc.start()
    mask = draw_random_mask(seed=0, name="layer", shape=LARGE, density=DENSITY)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / (mask.nnz * 8)


def _handoff_seconds() -> float:
    mask = draw_random_mask(seed=0, name="layer", shape=SQUARE, density=DENSITY)
    values = torch.randn(mask.nnz, generator=torch.Generator().manual_seed(0))
    return _median_seconds(lambda: split_sparse_update(values, mask, rank=RANK, scale=2.0))


def _median_seconds(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(RUNS):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


if __name__ == "__main__":
    sys.exit(main())
