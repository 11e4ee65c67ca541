"""The metrics of a spec: their names in an evaluation, and the direction that is better."""

from __future__ import annotations

from typing import Literal

Metric = Literal["eval_loss", "eval_perplexity", "eval_accuracy"]

METRICS: dict[str, tuple[str, Literal["min", "max"]]] = {
    "eval_loss": ("loss", "min"),
    "eval_perplexity": ("perplexity", "min"),
    "eval_accuracy": ("accuracy", "max"),
}


def list_metrics(task: str) -> list[str]:
    """List the metrics that a model of this task reports."""
    available = {"loss", "perplexity" if task == "causal-lm" else "accuracy"}
    return [name for name, (measure, _) in METRICS.items() if measure in available]
