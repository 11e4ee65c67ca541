"""Sums over rows from which an evaluation's metrics follow: they add up over batches and workers.

m: rows; C: classes. The layout depends on what is learnt of a row:

    tokens, completion   loss, targets
    class                loss, targets, hits
    classes              loss, targets, rows, exact rows, then [C] each of true positives, predicted
                         and actual ones
    number               loss, targets, absolute errors, then sums of x, y, x^2, y^2 and x y
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jobs.spec.tasks import TargetKind
from jobs.train.data.collate import Batch
from jobs.train.engine.chunked_loss import PLAIN_LOSS, LossChoice
from jobs.train.engine.loss import (
    TOKEN_KINDS,
    compute_logits,
    compute_token_loss,
    find_counted,
    sum_loss,
)

MAX_EXPONENT = 700.0
"""A diverged model's perplexity exceeds what a float holds."""


def compute_sums(
    model: Any, batch: Batch, choice: LossChoice = PLAIN_LOSS, *, device: torch.device
) -> Tensor:
    """Return the sums of one micro-batch that the model computes, float64."""
    if batch.kind in TOKEN_KINDS:
        loss = compute_token_loss(model, batch, choice, device=device)
        return torch.tensor([float(loss), float(batch.targets)], dtype=torch.float64)
    return sum_batch(*compute_logits(model, batch, device=device), batch)


def sum_batch(logits: Tensor, labels: Tensor, batch: Batch) -> Tensor:
    """Return the sums of one micro-batch, float64."""
    common = [float(sum_loss(logits, labels, batch.kind)), float(batch.targets)]
    rest = []
    if batch.kind == "class":
        rest = [_count_hits(logits, labels)]
    elif batch.kind == "classes":
        rest = _count_classes(logits, labels)
    elif batch.kind == "number":
        rest = _sum_numbers(logits, labels)
    return torch.tensor([*common, *rest], dtype=torch.float64)


def make_empty_sums(kind: TargetKind, classes: int) -> Tensor:
    """Return the sums of no rows."""
    sizes = {"class": 3, "classes": 4 + 3 * classes, "number": 8}
    return torch.zeros(sizes.get(kind, 2), dtype=torch.float64)


def compute_metrics(sums: Sequence[float], kind: TargetKind) -> dict[str, float]:
    """Return the metrics: the mean loss per target, and what tells more of this kind of target."""
    loss, targets, *rest = sums
    metrics = {"loss": loss / targets}
    if kind == "class":
        return {**metrics, "accuracy": rest[0] / targets, "rows": targets}
    if kind == "classes":
        return {**metrics, **_compute_class_metrics(rest)}
    if kind == "number":
        return {**metrics, "mse": loss / targets, **_compute_number_metrics(targets, rest)}
    perplexity = math.exp(min(metrics["loss"], MAX_EXPONENT))
    return {**metrics, "perplexity": perplexity, "tokens": targets}


def _count_hits(logits_mC: Tensor, labels_m: Tensor) -> float:
    """Count the rows whose class the logits rank first."""
    is_counted = find_counted(labels_m, "class")
    return float((logits_mC[is_counted].argmax(-1) == labels_m[is_counted]).sum())


def _count_classes(logits_mC: Tensor, labels_mC: Tensor) -> list[float]:
    is_row = find_counted(labels_mC[:, 0], "classes")
    # A class is predicted where its probability is above a half.
    predicted, actual = logits_mC[is_row] > 0, labels_mC[is_row] > 0.5
    exact = (predicted == actual).all(-1).sum()
    counts = torch.cat([(predicted & actual).sum(0), predicted.sum(0), actual.sum(0)])
    return [float(is_row.sum()), float(exact), *counts.tolist()]


def _sum_numbers(predicted_m: Tensor, labels_m: Tensor) -> list[float]:
    is_counted = find_counted(labels_m, "number")
    x, y = predicted_m[is_counted].double(), labels_m[is_counted].double()
    return [float(v.sum()) for v in ((x - y).abs(), x, y, x * x, y * y, x * y)]


def _compute_class_metrics(rest: Sequence[float]) -> dict[str, float]:
    """Return F1 over all decisions (micro) and as the mean over the classes (macro); a class that
    is neither predicted nor there counts as 0, as in scikit-learn.
    """
    rows, exact, counts = rest[0], rest[1], rest[2:]
    size = len(counts) // 3
    hits, predicted, actual = counts[:size], counts[size : 2 * size], counts[2 * size :]
    scores = [_compute_f1(*triple) for triple in zip(hits, predicted, actual, strict=True)]
    return {
        "f1_micro": _compute_f1(sum(hits), sum(predicted), sum(actual)),
        "f1_macro": sum(scores) / size,
        "exact_match": exact / rows,
        "rows": rows,
    }


def _compute_f1(hits: float, predicted: float, actual: float) -> float:
    return 2 * hits / (predicted + actual) if predicted + actual else 0.0


def _compute_number_metrics(n: float, rest: Sequence[float]) -> dict[str, float]:
    """Return the mean absolute error, and Pearson's correlation: NaN if either side is constant."""
    absolute, x, y, xx, yy, xy = rest
    spread = (n * xx - x * x) * (n * yy - y * y)
    pearson = (n * xy - x * y) / math.sqrt(spread) if spread > 0 else math.nan
    return {"mae": absolute / n, "pearson": pearson, "rows": n}
