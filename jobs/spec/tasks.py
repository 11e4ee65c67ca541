"""The tasks of a model: the rows that each reads, and what it learns of a row. No torch."""

from __future__ import annotations

from typing import Literal

Task = Literal["causal-lm", "seq2seq", "sequence-classification"]
LabelKind = Literal["one", "many", "number"]
TargetKind = Literal["tokens", "completion", "class", "classes", "number"]
"""What is learnt of a row: tokens of its own text, a text that answers another (completion), its
class, several classes, or a number."""

TASK_FORMATS: dict[str, tuple[str, ...]] = {
    "causal-lm": ("chat", "sharegpt", "prompt-completion", "alpaca", "text"),
    "seq2seq": ("prompt-completion", "alpaca"),
    "sequence-classification": ("classification",),
}
LABEL_TARGETS: dict[str, TargetKind] = {"one": "class", "many": "classes", "number": "number"}
PROBLEM_TYPES = {
    "one": "single_label_classification",
    "many": "multi_label_classification",
    "number": "regression",
}
"""What transformers calls them in config.json."""
NUMBER_LABEL = "value"
"""The name of the only output of a model that predicts a number."""


def get_target_kind(task: str, labels: str) -> TargetKind:
    """Return what a model of this task learns of a row; `labels` is data.labels."""
    if task == "sequence-classification":
        return LABEL_TARGETS[labels]
    return "completion" if task == "seq2seq" else "tokens"


def get_label_kind(problem_type: str) -> LabelKind:
    """Return the labels of a problem of transformers; an unknown one has one label a row."""
    kinds: tuple[LabelKind, ...] = ("one", "many", "number")
    return next((kind for kind in kinds if PROBLEM_TYPES[kind] == problem_type), "one")
