"""Rows and files for the tests of data sets. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.inspect.datasets.data_row import Row


def make_row(**values: Any) -> Row:
    return Row(values, "d.jsonl", 7)


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
