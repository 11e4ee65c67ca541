"""The formats of rows, and the class that each is read into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.inspect.datasets.alpaca import read_alpaca_turns, render_alpaca_prompt
from jobs.inspect.datasets.columns import (
    FORMATS,
    Columns,
    find_columns,
    get_column,
    make_columns_error,
)
from jobs.inspect.datasets.conversations import (
    Message,
    check_answered,
    read_messages,
    read_options,
    read_tools,
)
from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.labels import Label, read_label
from jobs.inspect.datasets.row_values import check_text, make_row_error


@dataclass(frozen=True)
class ChatExample:
    """A conversation with at least one turn of the assistant, as a chat template gets it."""

    messages: tuple[Mapping[str, Any], ...]
    """Whole messages: role, content (a string, or None beside tool calls), and all other keys."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Descriptions of the tools that the assistant may call."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further values of the row that templates read: documents, chat_template_kwargs."""


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
    """A text, or a pair of texts, and its label: a class, several classes, or a number."""

    text: str
    label: Label
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


def read_example(
    row: Row,
    fmt: str,
    *,
    task: str | None = None,
    columns: Columns | None = None,
    label_kind: str = "one",
) -> Example:
    """Return the example in a row. Raise InputError with file, line and column.

    `columns` has the column of each field that has another name, as `find_columns` returns them.
    `label_kind` is data.labels.
    """
    columns = columns or {}
    if fmt == "auto":
        match = find_columns(row.values, fmt, task=task, columns=columns)
        if match is None:
            raise make_columns_error(row, fmt, task=task, columns=columns)
        fmt, columns = match
    required = [get_column(columns, fmt, name) for name in FORMATS[fmt].required]
    if any(column not in row.values for column in required):
        raise make_columns_error(row, fmt, task=task, columns=columns)
    example = _READERS[fmt](_RowFields(row, fmt, columns, label_kind))
    if task == "seq2seq" and isinstance(example, ChatExample):
        problem = "the row is a conversation, and an encoder-decoder has no chat template"
        remedy = "Write prompt and completion as texts, or use a causal language model."
        raise make_row_error(row, problem, remedy)
    return example


@dataclass(frozen=True)
class _RowFields:
    """A row, read by the fields of its format."""

    row: Row
    format: str
    columns: Columns
    label_kind: str

    def get_column(self, name: str) -> str:
        return get_column(self.columns, self.format, name)

    def get(self, name: str) -> Any:
        return self.row.values.get(self.get_column(name))

    def read_text(self, name: str, *, may_be_empty: bool = False) -> str:
        return check_text(
            self.row, self.get_column(name), self.get(name), may_be_empty=may_be_empty
        )

    def read_optional_text(self, name: str) -> str:
        """Return the text, or an empty one if the row has none."""
        return "" if self.get(name) is None else self.read_text(name, may_be_empty=True)

    def read_messages(self, name: str) -> tuple[Message, ...]:
        return read_messages(
            self.row,
            self.get_column(name),
            role_key=self.get_column("role"),
            content_key=self.get_column("content"),
        )

    def read_tools(self) -> tuple[Message, ...]:
        column = self.get_column("tools")
        if column not in self.row.values and "functions" in self.row.values:
            column = "functions"
        return read_tools(self.row, column)


def _read_chat(fields: _RowFields) -> ChatExample:
    messages = fields.read_messages("messages")
    system = fields.read_optional_text("system")
    if system.strip():
        messages = _add_system(fields, messages, system)
    check_answered(fields.row, messages)
    return ChatExample(messages, fields.read_tools(), read_options(fields.row))


def _add_system(
    fields: _RowFields, messages: tuple[Message, ...], system: str
) -> tuple[Message, ...]:
    if not messages or messages[0]["role"] not in ("system", "developer"):
        return ({"role": "system", "content": system}, *messages)
    if messages[0]["content"] == system:
        return messages
    column = fields.get_column("system")
    problem = f"the row has the column {column!r} and a system turn with another text"
    raise make_row_error(fields.row, problem, "Keep one of them.")


def _read_completion(fields: _RowFields) -> CompletionExample | ChatExample:
    """Return a prompt and its completion; lists of messages are a conversation."""
    prompt, completion = fields.get("prompt"), fields.get("completion")
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return CompletionExample(
            fields.read_text("prompt", may_be_empty=True), fields.read_text("completion")
        )
    # The answers in a prompt are context: only the completion is learnt.
    before = [
        {**turn, "weight": 0} if turn["role"] == "assistant" else turn
        for turn in _read_turns(fields, "prompt", "user")
    ]
    messages = (*before, *_read_turns(fields, "completion", "assistant"))
    check_answered(fields.row, messages[len(before) :])
    return ChatExample(messages, fields.read_tools(), read_options(fields.row))


def _read_turns(fields: _RowFields, name: str, role: str) -> tuple[Message, ...]:
    if isinstance(fields.get(name), list):
        return fields.read_messages(name)
    return ({"role": role, "content": fields.read_text(name)},)


def _read_alpaca(fields: _RowFields) -> AlpacaExample:
    system = fields.read_optional_text("system")
    turns = read_alpaca_turns(
        fields.row,
        fields.read_text("instruction", may_be_empty=bool(fields.get("input"))),
        fields.read_optional_text("input"),
        fields.read_text("output"),
        history=fields.get("history"),
    )
    messages: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    for turn in turns:
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": turn.answer})
    completion = CompletionExample(render_alpaca_prompt(system, turns), turns[-1].answer)
    return AlpacaExample(ChatExample(tuple(messages)), completion)


def _read_labelled(fields: _RowFields) -> LabelledExample:
    label = read_label(fields.row, fields.get_column("label"), fields.label_kind)
    example = LabelledExample(fields.read_text("text"), label)
    if "text_pair" not in fields.columns and "text_pair" not in fields.row.values:
        return example
    return replace(example, text_pair=fields.read_text("text_pair"))


def _read_text(fields: _RowFields) -> TextExample:
    return TextExample(fields.read_text("text"))


_READERS: dict[str, Callable[[_RowFields], Example]] = {
    "chat": _read_chat,
    "sharegpt": _read_chat,
    "prompt-completion": _read_completion,
    "alpaca": _read_alpaca,
    "classification": _read_labelled,
    "text": _read_text,
}
