"""Rows of the demo's data sets: written as JSON lines, in an order by hash."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def hash_parts(*parts: object) -> str:
    """Return a digest of the parts, the same on every machine."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, ensure_ascii: bool) -> None:
    """Write one JSON object a line."""
    lines = [json.dumps(row, ensure_ascii=ensure_ascii) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
