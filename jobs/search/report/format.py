"""Format the figures of trials: values, bytes, times, and short names of keys."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

from jobs.search.trial_record import TrialRecord


def format_value(value: Any) -> str:
    """Return a searched value, numbers with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def format_metric(value: float | None) -> str:
    """Return the metric of a trial, or a dash."""
    return "–" if value is None else f"{value:.4f}" if _is_plain_size(value) else f"{value:.4g}"


def format_share(share: float | None) -> str:
    """Return a share as a percentage, or a dash."""
    return "–" if share is None else f"{share:.2%}"


def format_bytes(count: float | None) -> str:
    """Return a size such as 512 B or 1.9 MB."""
    if count is None:
        return "–"
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        # Not 1000: 999.96 kB would be shown as 1000.0 kB.
        if abs(size) < (1000 if unit == "B" else 999.95):
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """Return a time such as 4 s, 3 min 12 s or 2 h 5 min."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"


def list_keys(records: Iterable[TrialRecord]) -> list[str]:
    """Return every searched key, in the order of the trials."""
    return list(dict.fromkeys(key for record in records for key in record.config))


def list_varied_keys(records: Sequence[TrialRecord]) -> list[str]:
    """Return the keys that differ between trials, or all keys if none does."""
    keys = list_keys(records)
    varied = [key for key in keys if len({repr(record.config.get(key)) for record in records}) > 1]
    return varied or keys


def make_short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each key, or the full key if two end alike."""
    last_parts = [key.rsplit(".", 1)[-1] for key in keys]
    return {
        key: last if last_parts.count(last) == 1 else key
        for key, last in zip(keys, last_parts, strict=True)
    }


def _is_plain_size(value: float) -> bool:
    return value == 0 or (isfinite(value) and 0.001 <= abs(value) < 10_000)
