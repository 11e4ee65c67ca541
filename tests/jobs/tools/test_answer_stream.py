"""What a model says cannot command the terminal, wherever the stream is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jobs.tools.answer_stream import AnswerStream, escape_answer

HOSTILE = (
    "\x1b[2J\x1b[31mred "
    "\x1b]52;c;c2hvcnQ=\x07 "
    "\x9b31m "
    "\u202eright to left\u202c \u2066isolate\u2069 "
    "\r over \x08 back \x00 \x7f\n"
)
VISIBLE = "Grüße, 日本, naïve 🙂 \tx = [1, 2]\n"


class Characters:
    """A tokenizer whose tokens are characters."""

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(map(chr, tokens))


def stream(text: str, size: int) -> None:
    """Stream a text in pieces of so many tokens, as `generate` sends them."""
    printer = AnswerStream(Characters())
    tokens = torch.tensor([ord(character) for character in text])
    for piece in tokens.split(size):
        printer.put(piece)
    printer.end()


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_control_sequences_are_escaped_wherever_the_stream_is_cut(
    size: int, capsys: pytest.CaptureFixture[str]
):
    stream(HOSTILE, size)
    shown = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in shown), shown
    assert r"\x1b[2J\x1b[31mred" in shown and r"\x1b]52;c;c2hvcnQ=\x07" in shown
    assert r"\u202eright to left\u202c" in shown and r"\x9b31m" in shown
    assert shown == escape_answer(HOSTILE) + "\n"


@pytest.mark.parametrize("size", [1, 1000])
def test_text_is_shown_as_it_is(size: int, capsys: pytest.CaptureFixture[str]):
    stream(VISIBLE, size)
    assert capsys.readouterr().out == VISIBLE + "\n"
