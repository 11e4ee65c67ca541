"""Read the label of a row, and warn of labels that differ only in how they are written.

A row has the name of one class, a list of names, or a number: `data.labels` says which.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.row_values import (
    check_text,
    format_value,
    make_row_error,
    parse_json_text,
)

MAX_WARNINGS = 5
MAX_NUMBER = 1e15
"""A larger number is a mistake, and would end a training in float32."""

_WHOLE_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?")
"""A whole number as programs write one; zeros in front make a code, which is a text."""

Label = str | tuple[str, ...] | float
"""The name of a class, the names of several, or a number."""


def read_label(row: Row, column: str, kind: str = "one") -> Label:
    """Return the label of a row, of the kind that data.labels names. Raise InputError."""
    label = row.values[column]
    if kind == "many":
        return _read_names(row, column, label)
    return _read_number(row, column, label) if kind == "number" else _read_name(row, column, label)


def _read_names(row: Row, column: str, names: Any) -> tuple[str, ...]:
    """Return the names of a row's classes, each once; an empty list is right."""
    names = parse_json_text(row, column, names)
    if names is None:
        remedy = "Use [] for a row without any class, or remove the row."
        raise make_row_error(row, f"{column} is missing", remedy)
    if not isinstance(names, list):
        problem = f"{column} is {format_value(names)}, not a list, but data.labels is many"
        raise make_row_error(row, problem, 'Write a list: ["a", "b"]. Or use data.labels: one.')
    read = (
        _read_name(row, f"{column}[{index}]", name, is_in_list=True)
        for index, name in enumerate(names)
    )
    return tuple(dict.fromkeys(read))


def _read_number(row: Row, column: str, value: Any) -> float:
    """Return a row's number; tables may hold it as a text."""
    if value is None or value != value:
        raise make_row_error(row, f"{column} is missing", "Set it, or remove the row.")
    try:
        number = float("nan") if isinstance(value, bool | list | dict) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not abs(number) <= MAX_NUMBER:
        problem = f"{column} is {format_value(value)}, not a number, but data.labels is number"
        raise make_row_error(row, problem, "Write a finite number, or use data.labels: one.")
    return number


def _read_name(row: Row, column: str, label: Any, *, is_in_list: bool = False) -> str:
    """Return the name of a class: a text, a whole number or a boolean. Raise InputError.

    `is_in_list` says that data.labels is many.
    """
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
        remedy = _advise_on_name(label, is_in_list=is_in_list)
        raise make_row_error(row, f"{column} is {format_value(label)}", remedy)
    return check_text(row, column, label)


def _advise_on_name(label: Any, *, is_in_list: bool) -> str:
    """Return the advice about a value that is no name of a class."""
    if is_in_list and isinstance(label, list):
        return 'It should be one name: write all names of the row in one list, ["a", "b"].'
    if isinstance(label, list):
        return "It should be one name. For several a row, use data.labels: many."
    if isinstance(label, float) and not is_in_list:
        return "It should be a name. To predict a number, use data.labels: number."
    return "It should be a string, a whole number or a boolean."


def list_names(label: Label) -> tuple[str, ...]:
    """Return the names of the classes of a label; a number has none."""
    if isinstance(label, str):
        return (label,)
    return label if isinstance(label, tuple) else ()


def format_label(label: Label) -> str:
    """Return a label as text for people."""
    if isinstance(label, tuple):
        return ", ".join(label) or "none"
    return label if isinstance(label, str) else f"{label:g}"


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the labels in the order of their class ids: integers by value, others by name."""
    try:
        return tuple(sorted(labels := set(labels), key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))


def shorten_number(label: str) -> str:
    """Return a whole number without its `.0`, and other labels as they are."""
    match = _WHOLE_NUMBER.fullmatch(label)
    if match is None:
        return label
    return "0" if match[1] == "-0" else match[1]


def merge_numbers(labels: Iterable[str]) -> set[str]:
    """Return the labels of a table: `1.0` is `1` if all of them are whole numbers.

    pandas writes them so where a value is missing, and only the other labels tell them from texts.
    """
    labels = set(labels)
    are_numbers = all(map(_WHOLE_NUMBER.fullmatch, labels))
    return {*map(shorten_number, labels)} if are_numbers else labels


def list_unknown_labels(labels: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the labels that are not known, neither as they are nor as a whole number."""
    names, numbers = {*(known := tuple(known))}, {*map(shorten_number, known)}
    return [
        label for label in labels if label not in names and shorten_number(label) not in numbers
    ]


def warn_of_similar_labels(labels: Iterable[str]) -> list[str]:
    """Return a warning for labels that differ only in case, spaces, or `1`, `1.0` and `01`."""
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
    whole, _, zeros = text.partition(".")
    if not whole.lstrip("+-").isdigit() or zeros.strip("0"):
        return text
    sign = "-" * whole.startswith("-")
    return sign + (whole.lstrip("+-").lstrip("0") or "0")
