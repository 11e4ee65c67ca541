"""Checks of single values of a row, and how messages show them."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.data_row import Row

MAX_SHOWN_NAMES = 12


def make_row_error(row: Row, problem: str, remedy: str) -> InputError:
    """Return the error that a row is wrong, with its file and line."""
    return InputError([Fault(row.location, problem, remedy)])


def format_names(names: Iterable[str]) -> str:
    """Return names of columns for a message, at most 12 of them."""
    listed = [_REPR.repr(name) for name in names]
    dots = ["..."] * (len(listed) > MAX_SHOWN_NAMES)
    return ", ".join(listed[:MAX_SHOWN_NAMES] + dots) or "no columns"


def format_value(value: Any) -> str:
    """Return a value for a message, shortened, however deep or long it is."""
    text = _REPR.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60
_REPR.maxlevel = 4


def check_text(row: Row, field: str, value: Any, *, may_be_empty: bool = False) -> str:
    """Return the value if it is a text that a tokenizer accepts. Raise InputError."""
    if not isinstance(value, str):
        raise make_row_error(row, f"{field} is {format_value(value)}", "It should be a string.")
    if not may_be_empty and not value.strip():
        raise make_row_error(row, f"{field} is empty", "Set the field, or remove the row.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can encode half a surrogate pair, which no tokenizer accepts.
        problem = f"{field} contains an unpaired surrogate (U+{ord(value[error.start]):04X})"
        raise make_row_error(row, problem, "Fix the program that wrote the file.") from None
    return value


def parse_json_text(row: Row, field: str, value: Any) -> Any:
    """Return what a JSON text holds, as tables store lists; other values as they are.

    Raise InputError if the text is not valid JSON.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        problem = f"{field} is not valid JSON ({str(error)[:100]}): {format_value(value)}"
        raise make_row_error(row, problem, "Fix the program that wrote the file.") from None


def check_objects(row: Row, field: str, value: Any) -> list[Mapping[str, Any]]:
    """Return the value if it is a list of objects. Raise InputError."""
    value = parse_json_text(row, field, value)
    if not isinstance(value, list):
        problem = f"{field} is {format_value(value)}"
        raise make_row_error(row, problem, "It should be a list of objects.")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            problem = f"{field}[{index}] is {format_value(item)}"
            raise make_row_error(row, problem, "It should be an object.")
    return value
