"""Figures of a search's trials in words: values, bytes, times, and short names of keys."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

from jobs.search.rows import Row


def value_text(value: Any) -> str:
    """A searched value, short enough for a table: numbers to four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def metric_text(value: float | None) -> str:
    """The metric of a trial, or a dash."""
    return "–" if value is None else f"{value:.4f}" if _plain_size(value) else f"{value:.4g}"


def share_text(share: float | None) -> str:
    """A share of the model's parameters."""
    return "–" if share is None else f"{share:.2%}"


def bytes_text(count: float | None) -> str:
    """Bytes for people: 512 B, 1.9 MB."""
    if count is None:
        return "–"
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        # Not 1000: 999.96 kB would be shown as 1000.0 kB.
        if abs(size) < (1000 if unit == "B" else 999.95):
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def seconds_text(seconds: float) -> str:
    """A time for people: 4 s, 3 min 12 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def keys_of(rows: Iterable[Row]) -> list[str]:
    """Every searched key, in the order in which trials name them."""
    return list(dict.fromkeys(key for row in rows for key in row.config))


def varied_keys(rows: Sequence[Row]) -> list[str]:
    """The keys that tell trials apart; all of them where none does, as with a single trial."""
    keys = keys_of(rows)
    varied = [key for key in keys if len({repr(row.config.get(key)) for row in rows}) > 1]
    return varied or keys


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, or all of it where two keys end alike."""
    lasts = [key.rsplit(".", 1)[-1] for key in keys]
    return {
        key: last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)
    }


def _plain_size(value: float) -> bool:
    return value == 0 or (isfinite(value) and 0.001 <= abs(value) < 10_000)
