"""The file of results: one JSON line for each finished training, appended; a key counts once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path("docs/results/quality.jsonl")
Line = Mapping[str, Any]
Results = dict[str, dict[str, Any]]
"""Lines by key."""


def read_results(path: Path) -> Results:
    """Return the results so far by key; a line that a crash cut short counts as none."""
    results: Results = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        results[line["key"]] = line
    return results


def append_result(path: Path, line: Line) -> None:
    """Append one result in a single write, completely or not at all. After a line that was cut
    short, begin a new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 1))
        is_cut = end > 0 and file.read(1) != b"\n"
        file.write((b"\n" if is_cut else b"") + (json.dumps(line) + "\n").encode())
