"""State of the Union addresses (public domain) by president, as passages of text."""

import hashlib
import json
import math
import re
from collections import defaultdict
from pathlib import Path

from npm import iterate_members

FOLDER, SUFFIX = "package/sotu/data/", ".json"
MAX_WORDS = 90
"""Of a passage, at most: about 120 tokens."""
MIN_WORDS = 30
"""Shorter pieces, such as an address's end, are left out."""
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
        lines = [
            json.dumps({"text": text, "president": president, "year": year}, ensure_ascii=False)
            for president, year, text in sorted(split_rows, key=_hash_row)
        ]
        path = into / f"addresses.{name}.jsonl"
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")
    return (
        f"{len(by_president)} presidents, {len(rows)} passages:"
        f" {len(train)} to train on, {len(held_out)} held out"
    )


def split_passages(text: str) -> list[str]:
    """Whole sentences up to WORDS words together; a longer sentence is cut."""
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
    # Two addresses share stock sentences; a passage stands in one place only.
    row_by_text: dict[str, Row] = {}
    with iterate_members(archive, FOLDER, SUFFIX) as files:
        for file in files:
            address = json.load(file)
            for text in split_passages(address["text"]):
                row_by_text.setdefault(text, (address["name"], int(address["year"]), text))
    return list(row_by_text.values())


def _hash_row(row: Row) -> str:
    return hashlib.sha256("\0".join(map(str, row)).encode()).hexdigest()
