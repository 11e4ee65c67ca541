"""Metrics from sums over rows: those of scikit-learn and numpy, however the rows are split."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.spec.metrics import MEASURES, METRICS, check_metric, list_metrics
from jobs.spec.tasks import TargetKind
from jobs.train.data.collate import Batch
from jobs.train.engine.loss import sum_loss
from jobs.train.evaluation_sums import compute_metrics, make_empty_sums, sum_batch

ROWS, CLASSES = 40, 5
IGNORED: dict[TargetKind, float] = {"class": -100, "classes": -100, "number": math.nan}


def draw(kind: TargetKind) -> tuple[Tensor, Tensor]:
    """Random logits and labels of some rows, the last of which is filler."""
    torch.manual_seed(3)
    logits = torch.randn(ROWS, CLASSES)
    if kind == "class":
        labels = torch.randint(0, CLASSES, (ROWS,))
    elif kind == "classes":
        # The last class never occurs.
        labels = (torch.rand(ROWS, CLASSES) > 0.6).float() * torch.tensor([1.0, 1, 1, 1, 0])
    else:
        logits = 2000 + 10 * torch.randn(ROWS)
        labels = 0.5 * logits + 5 * torch.randn(ROWS)
    labels[-1] = IGNORED[kind]
    return logits, labels


def measure(kind: TargetKind, sizes: list[int]) -> dict[str, float]:
    logits, labels = draw(kind)
    sums = make_empty_sums(kind, CLASSES)
    for part, expected in zip(logits.split(sizes), labels.split(sizes), strict=True):
        targets = int((~expected.isnan() & (expected != -100)).sum())
        sums += sum_batch(part, expected, Batch({}, expected, targets, 0, kind=kind))
    return compute_metrics(sums.tolist(), kind)


@pytest.mark.parametrize("kind", IGNORED)
def test_metrics_do_not_depend_on_the_split_of_the_rows(kind: TargetKind):
    whole = measure(kind, [ROWS])
    assert measure(kind, [7, 30, 3]) == pytest.approx(whole, rel=1e-6)
    assert {"loss", *MEASURES[kind]} <= whole.keys() and whole["rows"] == ROWS - 1


def test_several_classes_have_the_scores_of_scikit_learn():
    logits, labels = (tensor[:-1] for tensor in draw("classes"))
    predicted, actual = logits > 0, labels > 0.5
    hits, total = (predicted & actual).sum(0).double(), (predicted.sum(0) + actual.sum(0)).double()
    metrics = measure("classes", [ROWS])
    assert metrics["f1_macro"] == pytest.approx(float((2 * hits / total).mean()))
    assert metrics["f1_micro"] == pytest.approx(float(2 * hits.sum() / total.sum()))
    exact = (predicted == actual).all(1).double().mean()
    assert metrics["exact_match"] == pytest.approx(float(exact))
    loss = torch.nn.BCEWithLogitsLoss()(logits, labels)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-6)


def test_numbers_have_squared_and_absolute_errors_and_a_correlation():
    predicted, labels = (tensor[:-1].double() for tensor in draw("number"))
    metrics = measure("number", [ROWS])
    assert metrics["mse"] == pytest.approx(float((predicted - labels).square().mean()), rel=1e-6)
    assert metrics["loss"] == metrics["mse"]
    assert metrics["mae"] == pytest.approx(float((predicted - labels).abs().mean()))
    pearson = torch.corrcoef(torch.stack([predicted, labels]))[0, 1]
    assert metrics["pearson"] == pytest.approx(float(pearson), abs=1e-9)


def test_what_is_constant_has_no_correlation_and_what_is_absent_scores_zero():
    batch = Batch({}, torch.tensor([1.0, 2.0]), 2, 0, kind="number")
    sums = sum_batch(torch.tensor([3.0, 3.0]), batch.labels, batch)
    assert math.isnan(compute_metrics(sums.tolist(), "number")["pearson"])
    labels = torch.zeros(2, 3)
    sums = sum_batch(labels - 1, labels, Batch({}, labels, 6, 0, kind="classes"))
    metrics = compute_metrics(sums.tolist(), "classes")
    assert (metrics["f1_micro"], metrics["f1_macro"], metrics["exact_match"]) == (0, 0, 1)


@pytest.mark.parametrize("kind", IGNORED)
def test_filler_adds_nothing_to_the_loss_and_has_a_gradient(kind: TargetKind):
    logits, labels = draw(kind)
    logits.requires_grad_()
    loss = sum_loss(logits[-1:], labels[-1:], kind)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0 and logits.grad is not None and not logits.grad.any()


def test_every_measure_is_a_metric_of_a_spec_and_others_are_refused():
    measures = {measure for measures in MEASURES.values() for measure in measures}
    assert measures | {"loss"} == {measure for measure, _ in METRICS.values()}
    assert list_metrics("number") == ["eval_loss", "eval_mse", "eval_mae", "eval_pearson"]
    faults: list[Any] = [
        *check_metric("search.metric", "eval_accuracy", "sequence-classification", "many"),
        *check_metric("search.metric", "eval_f1_micro", "sequence-classification", "many"),
    ]
    assert [str(fault) for fault in faults] == [
        "search.metric: sequence-classification with data.labels: many does not report "
        "eval_accuracy. Use eval_loss or eval_f1_micro or eval_f1_macro or eval_exact_match."
    ]
