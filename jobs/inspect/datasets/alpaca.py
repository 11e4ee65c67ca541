"""Rows of instruction, input and output: their turns, and the prompt of the Alpaca paper's code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.row_values import (
    check_text,
    format_value,
    make_row_error,
    parse_json_text,
)

PREAMBLE = "Below is an instruction that describes a task"
WITH_INPUT = ", paired with an input that provides further context"
REQUEST = ". Write a response that appropriately completes the request."


@dataclass(frozen=True)
class AlpacaTurn:
    """An instruction, what it is about, and the answer."""

    instruction: str
    input: str
    answer: str

    @property
    def question(self) -> str:
        """The user's turn of a conversation: the instruction, with its input on a line below."""
        return "\n".join(text for text in (self.instruction, self.input) if text)


def read_alpaca_turns(
    row: Row, instruction: str, input_text: str, output: str, *, history: Any
) -> list[AlpacaTurn]:
    """Return the earlier turns, if the row has a history, and the last one. Raise InputError."""
    return [*_read_history(row, history), AlpacaTurn(instruction, input_text, output)]


def render_alpaca_prompt(system: str, turns: Sequence[AlpacaTurn]) -> str:
    """Return the prompt up to the last answer, as Stanford's Alpaca was trained with.

    A system text takes the place of the preamble; earlier turns are written like the last.
    """
    with_input = WITH_INPUT if any(turn.input for turn in turns) else ""
    parts = [system.strip() or f"{PREAMBLE}{with_input}{REQUEST}"]
    for index, turn in enumerate(turns):
        parts.append(f"### Instruction:\n{turn.instruction}")
        parts += [f"### Input:\n{turn.input}"] if turn.input else []
        is_last = index + 1 == len(turns)
        parts.append(f"### Response:\n{'' if is_last else turn.answer}")
    return "\n\n".join(parts)


def _read_history(row: Row, value: Any) -> list[AlpacaTurn]:
    value = parse_json_text(row, "history", value)
    if value in (None, ""):
        return []
    if not isinstance(value, list):
        problem = f"history is {format_value(value)}"
        raise make_row_error(row, problem, "It should be a list of [instruction, answer].")
    turns = []
    for index, pair in enumerate(value):
        path = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            problem = f"{path} is {format_value(pair)}"
            raise make_row_error(row, problem, "It should be [instruction, answer].")
        question, answer = (check_text(row, path, text) for text in pair)
        turns.append(AlpacaTurn(question, "", answer))
    return turns
