"""Read conversations: roles of any names, tool calls, content in parts, and the tools of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.row_values import (
    check_objects,
    check_text,
    format_names,
    format_value,
    make_row_error,
    parse_json_text,
)

ROLES = ("system", "developer", "user", "assistant", "tool")
ROLE_NAMES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter", "customer"), "user"),
    **dict.fromkeys(
        ("gpt", "chatgpt", "bot", "model", "ai", "agent", "function_call"), "assistant"
    ),
    **dict.fromkeys(
        ("function", "observation", "ipython", "tool_response", "function_response", "tool_result"),
        "tool",
    ),
}
"""The role that each name of a role means."""
TEXT_PARTS = ("text", "input_text", "output_text")
MAY_BE_EMPTY = ("system", "developer", "tool")
"""A tool may return nothing, and a system message may be blank on purpose."""
ANSWER_KEYS = ("tool_calls", "reasoning_content")
"""An answer may have one of these instead of content."""
MESSAGE_KEYS = {
    "role": ("role", "from", "speaker", "author", "sender", "type", "name"),
    "content": ("content", "value", "text", "utterance", "message", "body"),
}
"""Names that people give the keys of a message, for advice."""
OPTION_COLUMNS = ("documents", "chat_template_kwargs")
"""Columns of a row that templates read."""

Message = Mapping[str, Any]


def read_messages(row: Row, column: str, *, role_key: str, content_key: str) -> tuple[Message, ...]:
    """Return the messages in a column, with every key that they have. Raise InputError."""
    value = parse_json_text(row, column, row.values[column])
    if not isinstance(value, list):
        problem = f"{column} is {format_value(value)}"
        raise make_row_error(row, problem, "It should be a list of messages.")
    return tuple(
        _read_message(row, f"{column}[{index}]", item, role_key, content_key)
        for index, item in enumerate(value)
    )


def check_answered(row: Row, messages: tuple[Message, ...]) -> None:
    """Raise InputError if no message is from the assistant."""
    if not any(message["role"] == "assistant" for message in messages):
        roles = ", ".join(str(message["role"]) for message in messages[:8]) or "none"
        problem = f"no message is from the assistant (roles: {roles})"
        raise make_row_error(row, problem, "Add an assistant turn.")


def read_tools(row: Row, column: str) -> tuple[Message, ...]:
    """Return the descriptions of tools in a column; OpenAI's older bare functions are wrapped."""
    value = row.values.get(column)
    if value is None or value == "":
        return ()
    return tuple(
        tool
        if "function" in tool or not {"name", "parameters"} <= tool.keys()
        else {"type": "function", "function": tool}
        for tool in check_objects(row, column, value)
    )


def read_options(row: Row) -> dict[str, Any]:
    """Return the columns of a row that templates read beside messages and tools."""
    options = {
        name: parse_json_text(row, name, row.values[name])
        for name in OPTION_COLUMNS
        if row.values.get(name) not in (None, "")
    }
    if not isinstance(options.get("chat_template_kwargs", {}), dict):
        problem = f"chat_template_kwargs is {format_value(options['chat_template_kwargs'])}"
        raise make_row_error(row, problem, "It should be an object.")
    return options


def _read_message(row: Row, path: str, value: Any, role_key: str, content_key: str) -> Message:
    if not isinstance(value, dict):
        problem = f"{path} is {format_value(value)}"
        remedy = f"It should be an object with {role_key} and {content_key}."
        raise make_row_error(row, problem, remedy)
    _check_keys(row, path, value, role_key, content_key)
    role = _read_role(row, f"{path}.{role_key}", value[role_key])
    others = {
        key: item
        for key, item in value.items()
        if key not in (role_key, content_key) and item is not None
    }
    _replace_train_key(row, path, others)
    _check_weight(row, path, others)
    content = value.get(content_key)
    if str(value[role_key]).lower() == "function_call":
        # ShareGPT writes a call as a turn of its own, with the call as its text.
        others["tool_calls"], content = _split_calls(row, f"{path}.{content_key}", content), None
    if "function_call" in others:
        others["tool_calls"] = [others.pop("function_call")]
    if others.get("tool_calls"):
        others["tool_calls"] = _read_calls(row, f"{path}.tool_calls", others["tool_calls"])
    if content is not None or not others.get("tool_calls"):
        may_be_empty = role in MAY_BE_EMPTY or any(others.get(key) for key in ANSWER_KEYS)
        content = _read_content(row, f"{path}.{content_key}", content, may_be_empty)
    return {"role": role, "content": content, **others}


def _check_keys(
    row: Row, path: str, value: Mapping[str, Any], role_key: str, content_key: str
) -> None:
    needed = [role_key] if value.get("tool_calls") or value.get("function_call") else [
        role_key, content_key
    ]  # fmt: skip
    if missing := [key for key in needed if key not in value]:
        names = " and ".join(map(repr, missing))
        problem = f"{path} is missing {names}; it has {format_names(value)}"
        remedy = f"Add it, or name the keys: data.columns: {{{_suggest_keys(value)}}}."
        raise make_row_error(row, problem, remedy)
    for key, name in (("role", role_key), ("content", content_key)):
        if key != name and value.get(key) is not None:
            problem = f"{path} has both {name!r} and {key!r}"
            raise make_row_error(
                row, problem, f"Remove one, or set data.columns: {{{key}: {key}}}."
            )


def _suggest_keys(message: Message) -> str:
    """Return the entries of data.columns for the keys of a message, as far as they can be told."""
    parts = []
    for key, names in MESSAGE_KEYS.items():
        column = next((name for name in names if name in message), "...")
        parts.append(f"{key}: {column}")
    return ", ".join(parts)


def _read_role(row: Row, path: str, name: Any) -> str:
    role = ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        remedy = f"It should be one of {', '.join(ROLES)}, or a name of one, such as human or gpt."
        raise make_row_error(row, f"{path} is {format_value(name)}", remedy)
    return role


def _replace_train_key(row: Row, path: str, message: dict[str, Any]) -> None:
    """Make `train: true` or `false`, as Axolotl's rows have it, the weight 1 or 0."""
    if "train" not in message:
        return
    train = message.pop("train")
    if train not in (0, 1):
        problem = f"{path}.train is {format_value(train)}"
        raise make_row_error(
            row, problem, "Use true to learn the message, or false to leave it out."
        )
    if message.get("weight", train) != train:
        problem = f"{path} has train {train} and weight {format_value(message['weight'])}"
        raise make_row_error(row, problem, "Remove one of them.")
    message["weight"] = int(train)


def _check_weight(row: Row, path: str, message: dict[str, Any]) -> None:
    """Make the weight of a message a whole number. Raise InputError if it is not 0 or 1."""
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        problem = f"{path}.weight is {format_value(weight)}"
        raise make_row_error(row, problem, "Use 1 to learn the message, or 0 to leave it out.")
    if "weight" in message:
        message["weight"] = int(weight)


def _read_content(row: Row, path: str, content: Any, may_be_empty: bool) -> str:
    if content is None:
        remedy = "Set it: only a message with tool calls may have none."
        raise make_row_error(row, f"{path} is null", remedy)
    if isinstance(content, list):
        content = "".join(
            _read_part(row, f"{path}[{index}]", part) for index, part in enumerate(content)
        )
    return check_text(row, path, content, may_be_empty=may_be_empty)


def _read_part(row: Row, path: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else None
    if kind not in TEXT_PARTS:
        problem = f"{path} is a part of the type {format_value(kind or part)}"
        remedy = "Only text is trained on: remove such parts, or the row."
        raise make_row_error(row, problem, remedy)
    return check_text(row, f"{path}.text", part.get("text"), may_be_empty=True)


def _split_calls(row: Row, path: str, content: Any) -> list[Any]:
    """Return the calls in the text of a turn: an object, or a list of them."""
    calls = parse_json_text(row, path, content)
    if isinstance(calls, dict):
        return [calls]
    if not isinstance(calls, list) or not calls:
        remedy = "It should be a JSON object with name and arguments."
        raise make_row_error(row, f"{path} is {format_value(content)}", remedy)
    return calls


def _read_calls(row: Row, path: str, value: Any) -> list[Message]:
    return [
        _read_call(row, f"{path}[{index}]", call)
        for index, call in enumerate(check_objects(row, path, value))
    ]


def _read_call(row: Row, path: str, call: Message) -> Message:
    """Return a call in OpenAI's form, with its arguments as an object."""
    if "function" not in call:
        call = {"type": "function", "function": call}
    function = call["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        problem = f"{path} is {format_value(call)}"
        raise make_row_error(row, problem, "A call needs function.name.")
    arguments = function.get("arguments")
    if arguments in (None, ""):
        arguments = {}
    arguments = parse_json_text(row, f"{path}.function.arguments", arguments)
    if not isinstance(arguments, dict):
        problem = f"{path}.function.arguments is {format_value(arguments)}"
        raise make_row_error(row, problem, "It should be an object, or JSON text of one.")
    return {**call, "function": {**function, "arguments": arguments}}
