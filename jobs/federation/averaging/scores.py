"""Average the mask scores of many clients; each sends only the numbers that the mask needs.

O, I: rows and columns of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from jobs.federation.sites.messages import ClientScores

Shapes = Mapping[str, tuple[int, int]]


def reduce_score(score_OI: Tensor, mask: str) -> Tensor:
    """Return what a client sends of a score, float32: sums by row or column if these decide."""
    if mask == "rows":
        return score_OI.double().sum(1).float()
    if mask == "columns":
        return score_OI.double().sum(0).float()
    return score_OI.flatten()


def count_numbers(shape: tuple[int, int], mask: str) -> int:
    """Return how many numbers `reduce_score` makes of a layer."""
    return {"rows": shape[0], "columns": shape[1]}.get(mask, math.prod(shape))


def explain_unusable(
    client_scores: ClientScores, rows: int, shapes: Shapes, mask: str
) -> str | None:
    """Return why a client's scores are invalid, or None. `rows` is the number of its rows."""
    expected_size = 4 * sum(count_numbers(shape, mask) for shape in shapes.values())
    if client_scores.rows != rows:
        return f"it reported {client_scores.rows} rows but it has {rows}"
    if len(client_scores.scores) != expected_size:
        return f"{len(client_scores.scores):,} bytes of scores instead of {expected_size:,}"
    if not np.isfinite(np.frombuffer(client_scores.scores, "<f4")).all():
        return "a score is not a finite number"
    return None


def average_scores(
    replies: Sequence[ClientScores], shapes: Shapes, mask: str
) -> Iterator[tuple[str, Tensor]]:
    """Yield each layer's mean score `[O, I]`, weighted by the clients' rows, of valid scores.

    Sums by row (or column) are spread over it evenly: the mask only looks at these sums.
    """
    replies = sorted(replies, key=lambda client_scores: client_scores.client)
    total_rows = sum(client_scores.rows for client_scores in replies)
    offset = 0
    for name, shape in shapes.items():
        count = count_numbers(shape, mask)
        mean = torch.zeros(count, dtype=torch.float64)
        for client_scores in replies:
            part = np.frombuffer(client_scores.scores, "<f4", count=count, offset=4 * offset)
            mean.add_(
                torch.from_numpy(part.astype(np.float64)), alpha=client_scores.rows / total_rows
            )
        offset += count
        yield name, _spread_sums(mean.float(), shape, mask)


def _spread_sums(mean: Tensor, shape: tuple[int, int], mask: str) -> Tensor:
    if mask == "rows":
        return (mean / shape[1])[:, None].expand(shape)
    if mask == "columns":
        return (mean / shape[0])[None, :].expand(shape)
    return mean.view(shape)
