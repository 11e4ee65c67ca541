"""Searches made up by arithmetic, for everything that reads rows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from jobs.search.report.results import COLUMNS
from jobs.search.trial_record import TrialRecord

HOSTILE = '<script>window.hacked = 1</script>"\'&<img src=x onerror="window.hacked=1">'


def row(number: int, metric: float | None = 1.0, **more: Any) -> TrialRecord:
    """A trial that ended well, with costs."""
    known: dict[str, Any] = {
        "config": {"method.rank": 8},
        "status": "done",
        "trainable_share": 0.01,
        "node_bytes": 1e6,
        "adapter_bytes": 1e6,
    }
    return TrialRecord(number=number, metric=metric, **(known | more))


def search(count: int = 12, *, seed: int = 0) -> list[TrialRecord]:
    """A search of every kind of trial: the larger the rank, the smaller the loss."""
    draw = random.Random(seed)
    return [_trial(number, draw) for number in range(count)]


def _trial(number: int, draw: random.Random) -> TrialRecord:
    rank = draw.choice([2, 4, 8, 16])
    config = {
        "method.rank": rank,
        "method.density": draw.choice([0.002, 0.005, 0.01]),
        "method.mask": draw.choice(["random", "fisher", "rows"]),
        "train.learning_rate": 10 ** draw.uniform(-4, -2),
    }
    known: dict[str, Any] = {
        "config": config,
        "trainable_share": 0.001 * rank,
        "node_bytes": 4e5 * rank * draw.uniform(0.8, 1.2),
        "adapter_bytes": 3e5 * rank,
        "memory_bytes": 5e8 + 1e6 * rank,
        "run": f"made-{number}",
    }
    if number % 6 == 4:
        return TrialRecord(
            number, status="rejected", reason="adapter of 9.1 MB: at most 2.0 MB", **known
        )
    if number % 6 == 5:
        return TrialRecord(number, status="failed", reason="out of memory", seconds=7.0, **known)
    stopped = number % 6 in (1, 3)
    steps = 20 if stopped else 60
    curve = tuple(
        (step, 3.0 - 0.1 * rank - 0.01 * step + draw.uniform(-0.05, 0.05))
        for step in range(0, steps + 1, 10)
    )
    return TrialRecord(
        number,
        status="stopped" if stopped else "done",
        metric=curve[-1][1],
        curve=curve,
        steps=steps,
        tokens=steps * 512,
        seconds=1.5 * steps + number,
        reason="asha: not among the best at step 20" if stopped else "",
        shared=("scores",) if number else (),
        **known,
    )


def read_parquet(path: Path) -> list[TrialRecord]:
    """Read the records of a file as any program can: by its columns."""
    lines = parquet.read_table(path, columns=list(COLUMNS)).to_pylist()
    return [
        TrialRecord.from_dict(
            {
                **line,
                "config": json.loads(line["config"]),
                "curve": [(point["step"], point["value"]) for point in line["curve"]],
            }
        )
        for line in lines
    ]
