"""Read the label of a row, and warn of labels that differ only in how they are written."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.row_values import check_text, format_value, make_row_error

MAX_WARNINGS = 5


def read_label(row: Row, column: str) -> str:
    """Return the name of a row's class: a text, a whole number or a boolean. Raise InputError."""
    label: Any = row.values[column]
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        # pandas writes whole numbers so where a value is missing.
        label = int(label)
    if isinstance(label, int):
        return str(label)
    if label is None or label != label:
        raise make_row_error(row, f"{column} is missing", "Set it, or remove the row.")
    if not isinstance(label, str):
        remedy = "It should be a string, a whole number or a boolean."
        raise make_row_error(row, f"{column} is {format_value(label)}", remedy)
    return check_text(row, column, label)


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the labels in the order of their class ids: integers by value, others by name."""
    try:
        return tuple(sorted(labels := set(labels), key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))


def warn_of_similar_labels(labels: Iterable[str]) -> list[str]:
    """Return a warning for labels that differ only in case, spaces, or `1` and `1.0`."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in sorted(labels):
        groups[_normalize_label(label)].append(label)
    similar = [group for group in groups.values() if len(group) > 1]
    warnings = [
        f"the labels {' and '.join(map(repr, group[:4]))} are different classes"
        for group in similar[:MAX_WARNINGS]
    ]
    if len(similar) > MAX_WARNINGS:
        warnings.append(f"{len(similar) - MAX_WARNINGS} more groups of labels are almost the same")
    return warnings


def _normalize_label(label: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
    whole, point, zeros = text.partition(".")
    return whole if point and whole.lstrip("+-").isdigit() and not zeros.strip("0") else text
