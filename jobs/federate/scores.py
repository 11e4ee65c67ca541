"""Scores of many clients for one set of masks: as few numbers as the masks need, averaged.

O, I: rows and columns of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from jobs.federate.messages import Scored

Shapes = Mapping[str, tuple[int, int]]


def reduced(score_OI: Tensor, mask: str) -> Tensor:
    """What of a score a client sends, float32: sums by row or column, where those decide."""
    if mask == "rows":
        return score_OI.double().sum(1).float()
    if mask == "columns":
        return score_OI.double().sum(0).float()
    return score_OI.flatten()


def numbers(shape: tuple[int, int], mask: str) -> int:
    """How many numbers `reduced` makes of a layer."""
    return {"rows": shape[0], "columns": shape[1]}.get(mask, math.prod(shape))


def unusable(told: Scored, rows: int, shapes: Shapes, mask: str) -> str | None:
    """Why a client's scores can't be taken, or None: `rows` are those that it has."""
    wanted = 4 * sum(numbers(shape, mask) for shape in shapes.values())
    if told.rows != rows:
        return f"it told of {told.rows} rows, and has {rows}"
    if len(told.scores) != wanted:
        return f"{len(told.scores):,} bytes of scores instead of {wanted:,}"
    if not np.isfinite(np.frombuffer(told.scores, "<f4")).all():
        return "it has a score that is no number"
    return None


def averaged(told: Sequence[Scored], shapes: Shapes, mask: str) -> Iterator[tuple[str, Tensor]]:
    """Each layer's mean score, weighted by the clients' rows, `[O, I]`, of scores that are usable.

    Sums by row (or column) are spread over it evenly: they are what is asked of it.
    """
    told = sorted(told, key=lambda one: one.client)
    whole = sum(one.rows for one in told)
    at = 0
    for name, shape in shapes.items():
        count = numbers(shape, mask)
        mean = torch.zeros(count, dtype=torch.float64)
        for one in told:
            part = np.frombuffer(one.scores, "<f4", count=count, offset=4 * at)
            mean.add_(torch.from_numpy(part.astype(np.float64)), alpha=one.rows / whole)
        at += count
        yield name, _spread(mean.float(), shape, mask)


def _spread(mean: Tensor, shape: tuple[int, int], mask: str) -> Tensor:
    if mask == "rows":
        return (mean / shape[1])[:, None].expand(shape)
    if mask == "columns":
        return (mean / shape[0])[None, :].expand(shape)
    return mean.view(shape)
