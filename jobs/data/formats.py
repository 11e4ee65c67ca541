"""The four formats of examples: how each is recognised, and the one frozen form it takes inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.data.files import Row
from jobs.errors import Fault, InputError

FIELDS: dict[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "classification": ("text", "label"),
    "text": ("text",),
}
"""What each format needs, the most demanding first: `auto` takes the first that is there."""

FORMATS_OF_TASK: dict[str, tuple[str, ...]] = {
    "causal-lm": ("chat", "prompt-completion", "text"),
    "sequence-classification": ("classification",),
}

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns, at least one of them the assistant's."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Completion:
    """What is given, and what is to be learnt as its continuation."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """Text to be learnt whole."""

    text: str


@dataclass(frozen=True)
class Labelled:
    """Text and the name of its class."""

    text: str
    label: str


Example = Conversation | Completion | Text | Labelled


def detect(values: Mapping[str, Any], *, task: str | None = None) -> str | None:
    """The format these fields make, among those that fit the task; None if there is none."""
    allowed = FORMATS_OF_TASK[task] if task else tuple(FIELDS)
    for name, fields in FIELDS.items():
        if name in allowed and all(field in values for field in fields):
            return name
    return None


def read_example(row: Row, fmt: str, *, task: str | None = None) -> Example:
    """The example in a row. Raises InputError naming file, line and field."""
    chosen = detect(row.values, task=task) if fmt == "auto" else fmt
    if chosen is None:
        raise _no(row, f"no format fits the fields {_names(row.values)}", _needs(task))
    if missing := [field for field in FIELDS[chosen] if field not in row.values]:
        problem = f"{chosen} needs {_listed(missing)}; the row has {_names(row.values)}"
        raise _no(row, problem, "Rename the fields, or set data.format.")
    if chosen == "chat":
        return Conversation(_messages(row))
    if chosen == "prompt-completion":
        return Completion(_text(row, "prompt", empty=True), _text(row, "completion"))
    if chosen == "classification":
        return Labelled(_text(row, "text"), _label(row))
    return Text(_text(row, "text"))


def _no(row: Row, problem: str, remedy: str) -> InputError:
    return InputError([Fault(row.where, problem, remedy)])


def _needs(task: str | None) -> str:
    allowed = FORMATS_OF_TASK[task] if task else tuple(FIELDS)
    return "; ".join(f"{name} needs {', '.join(FIELDS[name])}" for name in allowed) + "."


def _listed(names: list[str]) -> str:
    return " and ".join(repr(name) for name in names)


def _names(values: Mapping[str, Any]) -> str:
    names = [repr(name) for name in list(values)[:12]]
    return ", ".join(names + ["..."] * (len(values) > 12)) or "no fields"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _text(row: Row, field: str, *, empty: bool = False) -> str:
    return _checked(row, field, row.values[field], empty=empty)


def _checked(row: Row, field: str, value: Any, *, empty: bool) -> str:
    if not isinstance(value, str):
        raise _no(row, f"{field} is {_show(value)}", "It should be a string.")
    if not empty and not value.strip():
        raise _no(row, f"{field} is empty", "Remove the row, or fill it.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as wrong:
        # JSON may spell half a surrogate pair, which no tokenizer takes.
        problem = f"{field} holds half a character (U+{ord(value[wrong.start]):04X})"
        raise _no(row, problem, "Mend what wrote it.") from None
    return value


def _label(row: Row) -> str:
    label = row.values["label"]
    if isinstance(label, int) and not isinstance(label, bool):
        return str(label)
    if not isinstance(label, str):
        raise _no(row, f"label is {_show(label)}", "It should be a string or a whole number.")
    return _checked(row, "label", label, empty=False)


def _messages(row: Row) -> tuple[Message, ...]:
    messages = row.values["messages"]
    if not isinstance(messages, list):
        raise _no(row, f"messages is {_show(messages)}", "It should be a list of messages.")
    read = tuple(_message(row, f"messages[{at}]", value) for at, value in enumerate(messages))
    if not any(message.role == "assistant" for message in read):
        found = ", ".join(message.role for message in read[:8]) or "no message"
        raise _no(row, f"nothing to learn: messages has {found}", "It needs an assistant's turn.")
    return read


def _message(row: Row, at: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise _no(row, f"{at} is {_show(value)}", "It should be an object with role and content.")
    if missing := [field for field in ("role", "content") if field not in value]:
        raise _no(row, f"{at} lacks {_listed(missing)}; it has {_names(value)}", "Add it.")
    role = value["role"]
    if role not in ROLES:
        raise _no(row, f"{at}.role is {_show(role)}", f"It should be one of {', '.join(ROLES)}.")
    # Tools may answer with nothing, and a system message may be blank on purpose.
    empty = role in ("system", "tool")
    return Message(role, _checked(row, f"{at}.content", value["content"], empty=empty))
