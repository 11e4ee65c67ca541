"""The metrics of a spec: their names in an evaluation, and the direction that is better."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal

from jobs.errors import Fault
from jobs.spec.tasks import TargetKind, get_target_kind

Metric = Literal[
    "eval_loss",
    "eval_perplexity",
    "eval_accuracy",
    "eval_f1_micro",
    "eval_f1_macro",
    "eval_exact_match",
    "eval_mse",
    "eval_mae",
    "eval_pearson",
]

METRICS: dict[str, tuple[str, Literal["min", "max"]]] = {
    "eval_loss": ("loss", "min"),
    "eval_perplexity": ("perplexity", "min"),
    "eval_accuracy": ("accuracy", "max"),
    "eval_f1_micro": ("f1_micro", "max"),
    "eval_f1_macro": ("f1_macro", "max"),
    "eval_exact_match": ("exact_match", "max"),
    "eval_mse": ("mse", "min"),
    "eval_mae": ("mae", "min"),
    "eval_pearson": ("pearson", "max"),
}
MEASURES: dict[TargetKind, tuple[str, ...]] = {
    "tokens": ("perplexity",),
    "completion": ("perplexity",),
    "class": ("accuracy",),
    "classes": ("f1_micro", "f1_macro", "exact_match"),
    "number": ("mse", "mae", "pearson"),
}
"""What an evaluation reports beside the loss, the most telling first."""
FORMATS = {
    "perplexity": ".2f",
    "accuracy": ".1%",
    "f1_micro": ".3f",
    "f1_macro": ".3f",
    "exact_match": ".1%",
    "mse": ".4g",
    "mae": ".4g",
    "pearson": ".3f",
}
"""How reports write a measure."""
TITLES = {"f1_micro": "micro F1", "f1_macro": "macro F1", "exact_match": "exact match",
          "mse": "MSE", "mae": "MAE", "pearson": "Pearson r"}  # fmt: skip
"""The names of measures that are not plain words."""


def list_metrics(kind: TargetKind) -> list[str]:
    """List the metrics that a model which learns this reports."""
    measures = ("loss", *MEASURES[kind])
    return [name for name, (measure, _) in METRICS.items() if measure in measures]


def list_measures(metrics: Collection[str]) -> list[str]:
    """List the measures beside the loss that an evaluation has, the most telling first."""
    return [name for name in FORMATS if name in metrics]


def name_measure(measure: str) -> str:
    """Return a measure's name for people."""
    return TITLES.get(measure, measure)


def check_metric(key: str, metric: str, task: str, labels: str) -> Iterator[Fault]:
    """Check that a run with this task and these data.labels reports the metric of a key."""
    names = list_metrics(get_target_kind(task, labels))
    if metric not in names:
        subject = task if labels == "one" else f"{task} with data.labels: {labels}"
        problem = f"{subject} does not report {metric}"
        yield Fault(key, problem, f"Use {' or '.join(names)}.")
