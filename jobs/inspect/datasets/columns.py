"""Find the columns of a row that a format reads: by their names, or those in data.columns."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import InputError
from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.row_values import format_names, make_row_error
from jobs.spec.tasks import TASK_FORMATS

Columns = Mapping[Any, str]
"""The column of each field that has another name."""


@dataclass(frozen=True)
class FormatFields:
    """The fields of a format."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    """Columns of fields that have another name in this format."""


CHAT_OPTIONS = ("role", "content", "tools", "system")
CHAT_COLUMNS = {"functions", "documents", "chat_template_kwargs"}
"""Columns that are read of a conversation under their own names."""
FORMATS: dict[str, FormatFields] = {
    "chat": FormatFields(("messages",), CHAT_OPTIONS),
    "sharegpt": FormatFields(
        ("messages",),
        CHAT_OPTIONS,
        {"messages": "conversations", "role": "from", "content": "value"},
    ),
    "prompt-completion": FormatFields(("prompt", "completion"), ("role", "content", "tools")),
    "alpaca": FormatFields(("instruction", "output"), ("input", "system", "history")),
    "classification": FormatFields(("text", "label"), ("text_pair",)),
    "text": FormatFields(("text",)),
}
"""The formats in the order in which `auto` tries them."""

TEXT_PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("text1", "text2"),
    ("question1", "question2"),
    ("question", "passage"),
    ("question", "sentence"),
    ("query", "passage"),
    ("query", "document"),
)
"""Columns of two texts that are classified together."""

USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "chat", "dialog", "dialogue",
                 "turns"),
    "prompt": ("prompt", "question", "instruction", "query", "input", "source", "context", "user",
               "problem", "article", "document"),
    "completion": ("completion", "answer", "response", "output", "target", "assistant", "reply",
                   "solution", "summary", "chosen"),
    "instruction": ("instruction", "question", "prompt"),
    "output": ("output", "response", "answer", "completion"),
    "text": ("text", "content", "sentence", "body", "review", "document", "article", "comment",
             "tweet", "message", "title", "question", "code"),
    "label": ("label", "labels", "class", "category", "target", "stars", "rating", "sentiment",
              "intent", "score", "topic", "is_spam"),
}  # fmt: skip
"""Names that people give the columns, for advice: only a person can tell that they mean this."""


def find_columns(
    values: Mapping[str, Any], fmt: str, *, task: str | None, columns: Columns | None = None
) -> tuple[str, dict[str, str]] | None:
    """Return the format that a row fits, with the columns of its renamed fields, or None.

    `fmt` is a format or `auto`; `columns` are those of data.columns, which go first.
    """
    if fmt == "auto" and "messages" not in values and find_preference(values, columns):
        return None
    for name in list_formats(fmt, task):
        mapping = _map_fields(values, name, columns or {})
        if mapping is not None:
            usual = FORMATS[name].names
            return name, {
                key: column for key, column in mapping.items() if usual.get(key, key) != column
            }
    return None


def list_formats(fmt: str, task: str | None) -> tuple[str, ...]:
    """Return the formats to try: one, or all that fit the task."""
    if fmt != "auto":
        return (fmt,)
    formats = TASK_FORMATS[task] if task else tuple(FORMATS)
    return tuple(name for name in FORMATS if name in formats)


def get_column(columns: Columns, fmt: str, field_name: str) -> str:
    """Return the column of a field."""
    return columns.get(field_name, FORMATS[fmt].names.get(field_name, field_name))


def _map_fields(values: Mapping[str, Any], fmt: str, columns: Columns) -> dict[str, str] | None:
    """Return the column of each field, or None if the row lacks one."""
    fields = FORMATS[fmt]
    if columns.keys() - {*fields.required, *fields.optional}:
        return None
    mapping = {**fields.names, **columns}
    if fmt == "classification" and not {"text", "text_pair"} & columns.keys():
        mapping |= _find_pair(values)
    if fmt == "chat" and "messages" not in columns and "messages" not in values:
        mapping |= {"messages": "conversations"} if _has_chat_keys(values) else {}
    if any(mapping.get(name, name) not in values for name in fields.required):
        return None
    if fmt in ("chat", "sharegpt") and not {"role", "content"} & columns.keys():
        mapping |= _find_message_keys(values.get(mapping.get("messages", "messages")))
    return mapping


def _find_pair(values: Mapping[str, Any]) -> dict[str, str]:
    if "text" in values and "text_pair" not in values:
        return {}
    for first, second in TEXT_PAIRS:
        if first in values and second in values:
            return {"text": first, "text_pair": second}
    return {}


def _get_first_message(messages: Any) -> Mapping[str, Any]:
    first = messages[0] if isinstance(messages, list) and messages else None
    return first if isinstance(first, dict) else {}


def _has_chat_keys(values: Mapping[str, Any]) -> bool:
    return "role" in _get_first_message(values.get("conversations"))


def _find_message_keys(messages: Any) -> dict[str, str]:
    """Return the keys of a message, told from the first."""
    keys = _get_first_message(messages).keys()
    if {"from", "value"} <= keys and "role" not in keys:
        return {"role": "from", "content": "value"}
    return {"role": "role", "content": "content"} if "role" in keys else {}


def make_columns_error(
    row: Row, fmt: str, *, task: str | None, columns: Columns | None = None
) -> InputError:
    """Return the error that no format fits a row, with the columns seen and how to name them."""
    columns = columns or {}
    if preference := find_preference(row.values, columns):
        return make_row_error(row, *preference)
    if task == "seq2seq" and find_columns(row.values, "auto", task="causal-lm", columns=columns):
        problem = f"an encoder-decoder answers a prompt; the row has {format_names(row.values)}"
        remedy = "Use rows with prompt and completion, or a causal language model."
        return make_row_error(row, problem, remedy)
    formats = list_formats(fmt, task)
    suggestion = suggest_columns(row.values, formats, columns)
    remedy = f"Name the columns in data.columns. {_describe_formats(formats)}"
    if suggestion:
        remedy = f"Use data.columns: {{{suggestion}}}."
    elif columns and {*columns.values()} <= row.values.keys():
        remedy = f"No format reads {', '.join(columns)} together. {_describe_formats(formats)}"
    return make_row_error(row, _describe_mismatch(row, fmt, columns), remedy)


def _describe_mismatch(row: Row, fmt: str, columns: Columns) -> str:
    names = format_names(row.values)
    if fmt == "auto":
        return f"no format fits the columns {names}"
    required = (repr(get_column(columns, fmt, name)) for name in FORMATS[fmt].required)
    return f"{fmt} needs {' and '.join(required)}; the row has {names}"


def find_preference(values: Mapping[str, Any], columns: Columns | None) -> tuple[str, str] | None:
    """Return what is wrong with rows of preferences, which are not rows to learn from."""
    named = {*(columns or {}).values()}
    if {"chosen", "rejected"} <= values.keys() and not named & {"chosen", "rejected"}:
        field_names = "messages: chosen" if isinstance(values["chosen"], list) else (
            "prompt: prompt, completion: chosen" if "prompt" in values else "text: chosen"
        )  # fmt: skip
        remedy = f"To learn the chosen answers, use data.columns: {{{field_names}}}."
        return "chosen and rejected answers are preferences, which are not trained on", remedy
    if {"prompt", "completion", "label"} <= values.keys() and isinstance(values["label"], bool):
        remedy = "Keep the rows whose label is true, and remove the column label."
        return "a boolean label beside a completion is a preference, not trained on", remedy
    return None


def suggest_columns(
    values: Mapping[str, Any], formats: tuple[str, ...], columns: Columns
) -> str | None:
    """Return the closest data.columns that would work, or None."""
    for fmt in formats:
        fields = FORMATS[fmt]
        if columns.keys() - {*fields.required, *fields.optional}:
            continue
        mapping = {key: column for key, column in columns.items() if column in values}
        for name in fields.required:
            taken = {*mapping.values()}
            if name in mapping:
                continue
            column = next(_iter_candidates(values, name, taken), None)
            if column is None:
                break
            mapping[name] = column
        else:
            return ", ".join(f"{key}: {column}" for key, column in mapping.items())
    return None


def _iter_candidates(values: Mapping[str, Any], name: str, taken: set[str]) -> Iterator[str]:
    """Yield the columns that may be meant by a field, the likeliest first."""
    available = {column.lower().strip(): column for column in values if column not in taken}
    usual = USUAL_NAMES.get(name, (name,))
    for candidate in usual:
        if candidate in available and _has_type(values[available[candidate]], name):
            yield available[candidate]
    for candidate in usual:
        for close in difflib.get_close_matches(candidate, available, n=1, cutoff=0.75):
            if _has_type(values[available[close]], name):
                yield available[close]


def _has_type(value: Any, name: str) -> bool:
    if name == "messages":
        return isinstance(value, list) or (isinstance(value, str) and value[:1] == "[")
    if name == "label":
        is_list_of_names = isinstance(value, list) and not isinstance(next(iter(value), ""), dict)
        return is_list_of_names or not isinstance(value, list | dict)
    return isinstance(value, str)


def _describe_formats(formats: tuple[str, ...]) -> str:
    parts = (f"{name} needs {', '.join(FORMATS[name].required)}" for name in formats)
    return f"Formats: {'; '.join(parts)}."


def list_used_columns(fmt: str, columns: Columns) -> set[str]:
    """Return the columns that a format reads of a row."""
    fields = FORMATS[fmt]
    names = {*fields.required, *fields.optional, *columns} - {"role", "content"}
    used = {get_column(columns, fmt, name) for name in names}
    return used | CHAT_COLUMNS if "tools" in names else used
