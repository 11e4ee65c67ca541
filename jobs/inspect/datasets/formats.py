"""The four formats of examples: their fields, and the class that each is read into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.files import Row

FORMAT_FIELDS: dict[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "classification": ("text", "label"),
    "text": ("text",),
}
"""Required fields of each format, the longest list first: `auto` takes the first that fits."""

TASK_FORMATS: dict[str, tuple[str, ...]] = {
    "causal-lm": ("chat", "prompt-completion", "text"),
    "sequence-classification": ("classification",),
}

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class ChatExample:
    """A conversation with at least one turn of the assistant, as a chat template gets it."""

    messages: tuple[Mapping[str, Any], ...]
    """Whole messages: role, content (a string, or None beside tool calls), and all other keys."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Descriptions of the tools that the assistant may call."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further values of the row that templates read, such as documents."""


@dataclass(frozen=True)
class CompletionExample:
    """A prompt, and the continuation to learn."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class TextExample:
    """A text to learn from its first token to its last."""

    text: str


@dataclass(frozen=True)
class LabelledExample:
    """A text, or a pair of texts, and the name of its class."""

    text: str
    label: str
    text_pair: str | None = None


@dataclass(frozen=True)
class AlpacaExample:
    """An instruction and its answer, for models with a chat template and for those without."""

    chat: ChatExample
    completion: CompletionExample

    def resolve(self, *, has_template: bool) -> ChatExample | CompletionExample:
        """Return the conversation if the tokenizer has a chat template, or the Alpaca prompt."""
        return self.chat if has_template else self.completion


Example = ChatExample | CompletionExample | TextExample | LabelledExample | AlpacaExample


def detect_format(values: Mapping[str, Any], *, task: str | None = None) -> str | None:
    """Return the first format of the task that these fields fit, or None."""
    formats = TASK_FORMATS[task] if task else tuple(FORMAT_FIELDS)
    for name, fields in FORMAT_FIELDS.items():
        if name in formats and all(field_name in values for field_name in fields):
            return name
    return None


def read_example(row: Row, fmt: str, *, task: str | None = None) -> Example:
    """Return the example in a row. Raise InputError with file, line and field."""
    format_name = detect_format(row.values, task=task) if fmt == "auto" else fmt
    if format_name is None:
        raise _make_row_error(
            row, f"no format fits the fields {_format_names(row.values)}", _describe_formats(task)
        )
    if missing := [name for name in FORMAT_FIELDS[format_name] if name not in row.values]:
        problem = (
            f"{format_name} needs {_join_names(missing)}; the row has {_format_names(row.values)}"
        )
        raise _make_row_error(row, problem, "Rename the fields, or set data.format.")
    if format_name == "chat":
        return ChatExample(_read_messages(row))
    if format_name == "prompt-completion":
        return CompletionExample(
            _read_text(row, "prompt", may_be_empty=True), _read_text(row, "completion")
        )
    if format_name == "classification":
        return LabelledExample(_read_text(row, "text"), _read_label(row))
    return TextExample(_read_text(row, "text"))


def _make_row_error(row: Row, problem: str, remedy: str) -> InputError:
    return InputError([Fault(row.location, problem, remedy)])


def _describe_formats(task: str | None) -> str:
    formats = TASK_FORMATS[task] if task else tuple(FORMAT_FIELDS)
    return "; ".join(f"{name} needs {', '.join(FORMAT_FIELDS[name])}" for name in formats) + "."


def _join_names(names: list[str]) -> str:
    return " and ".join(repr(name) for name in names)


def _format_names(values: Mapping[str, Any]) -> str:
    names = [repr(name) for name in list(values)[:12]]
    return ", ".join(names + ["..."] * (len(values) > 12)) or "no fields"


def _format_value(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _read_text(row: Row, field: str, *, may_be_empty: bool = False) -> str:
    return _check_text(row, field, row.values[field], may_be_empty=may_be_empty)


def _check_text(row: Row, field: str, value: Any, *, may_be_empty: bool) -> str:
    if not isinstance(value, str):
        raise _make_row_error(row, f"{field} is {_format_value(value)}", "It should be a string.")
    if not may_be_empty and not value.strip():
        raise _make_row_error(row, f"{field} is empty", "Set the field, or remove the row.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can encode half a surrogate pair, which no tokenizer accepts.
        problem = f"{field} contains an unpaired surrogate (U+{ord(value[error.start]):04X})"
        raise _make_row_error(row, problem, "Fix the program that wrote the file.") from None
    return value


def _read_label(row: Row) -> str:
    label = row.values["label"]
    if isinstance(label, int) and not isinstance(label, bool):
        return str(label)
    if not isinstance(label, str):
        raise _make_row_error(
            row, f"label is {_format_value(label)}", "It should be a string or a whole number."
        )
    return _check_text(row, "label", label, may_be_empty=False)


def _read_messages(row: Row) -> tuple[Mapping[str, Any], ...]:
    messages = row.values["messages"]
    if not isinstance(messages, list):
        raise _make_row_error(
            row, f"messages is {_format_value(messages)}", "It should be a list of messages."
        )
    chat_messages = tuple(
        _read_message(row, f"messages[{index}]", value) for index, value in enumerate(messages)
    )
    if not any(message["role"] == "assistant" for message in chat_messages):
        roles = ", ".join(message["role"] for message in chat_messages[:8]) or "none"
        raise _make_row_error(
            row, f"no message is from the assistant (roles: {roles})", "Add an assistant turn."
        )
    return chat_messages


def _read_message(row: Row, path: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _make_row_error(
            row,
            f"{path} is {_format_value(value)}",
            "It should be an object with role and content.",
        )
    if missing := [key for key in ("role", "content") if key not in value]:
        raise _make_row_error(
            row,
            f"{path} is missing {_join_names(missing)}; it has {_format_names(value)}",
            "Add it.",
        )
    role = value["role"]
    if role not in ROLES:
        raise _make_row_error(
            row, f"{path}.role is {_format_value(role)}", f"It should be one of {', '.join(ROLES)}."
        )
    # A tool may return nothing, and a system message may be blank on purpose.
    may_be_empty = role in ("system", "tool")
    _check_text(row, f"{path}.content", value["content"], may_be_empty=may_be_empty)
    return dict(value)
