"""How an adapter's files name its task and its labels. No torch."""

from __future__ import annotations

from typing import Any

TASK_TYPES = {
    "causal-lm": "CAUSAL_LM",
    "seq2seq": "SEQ_2_SEQ_LM",
    "sequence-classification": "SEQ_CLS",
}
"""PEFT's names of the tasks."""
SINGLE_LABEL = "single_label_classification"
"""What transformers calls the problem of rows with one label each."""


def dump_labels(labels: tuple[str, ...], problem_type: str) -> Any:
    """Return what labels.json holds: a list of names, with the problem if it is another one."""
    if problem_type == SINGLE_LABEL:
        return list(labels)
    return {"labels": list(labels), "problem_type": problem_type}


def parse_labels(value: Any) -> tuple[tuple[str, ...], str]:
    """Return the names, and transformers' name of the problem. Raise ValueError."""
    names, problem_type = value, SINGLE_LABEL
    if isinstance(value, dict):
        names, problem_type = value.get("labels"), str(value.get("problem_type"))
    if not isinstance(names, list):
        raise ValueError("it has no list of labels")
    return tuple(map(str, names)), problem_type
