"""The rows that both sides train on: texts of exactly as many tokens as a sequence holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FILLER = " and"
"""One token, which fills a text whose next word would be too long."""


def write_rows(source: Path, target: Path, tokenizer: Any, *, count: int, tokens: int) -> None:
    """Write `count` texts from the conversations of a file, each of `tokens` tokens and an end."""
    words = _iter_words(source)
    texts = [_make_text(words, tokenizer, tokens=tokens - 1) for _ in range(count)]
    target.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_in_order(source: Path, target: Path, *, seed: int) -> None:
    """Write the rows in the order in which `slora train` reads them in its first epoch."""
    from jobs.train.data.source import RowSource

    rows = RowSource((source.absolute(),), "text").iter_rows(epoch=0, shuffle_seed=seed)
    target.write_text("".join(json.dumps({"text": row.values["text"]}) + "\n" for row in rows))


def _iter_words(source: Path) -> Iterator[str]:
    for line in source.read_text(encoding="utf-8").splitlines():
        for message in json.loads(line)["messages"]:
            yield from message["content"].split()


def _make_text(words: Iterable[str], tokenizer: Any, *, tokens: int) -> str:
    text = ""
    for word in words:
        longer = f"{text} {word}" if text else word
        if (length := len(tokenizer(longer)["input_ids"])) > tokens:
            break
        text = longer
        if length == tokens:
            return text
    while len(tokenizer(text)["input_ids"]) < tokens:
        text += FILLER
    return text
