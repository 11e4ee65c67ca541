"""Values that strangers may have written, read so that nothing of them surprises a database."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jobs.spec.schema import NAME_PATTERN
from jobs.spec.yaml_text import MAX_BYTES, parse_yaml_fast
from jobs.store.runs.run_store import MAX_RUN_ID_LENGTH

FIX_HINT = "Mend or remove it, then rebuild again."
MAX_INT32 = 2**31 - 1


def parse_mapping(text: bytes) -> Mapping[str, Any]:
    """The YAML in `text`, or ValueError, or one of PyYAML's own errors."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    values = parse_yaml_fast(text.decode())
    if not isinstance(values, dict):
        raise ValueError("not a mapping")
    return values


def is_run_id(name: str) -> bool:
    """Whether a run may be called so."""
    return len(name) <= MAX_RUN_ID_LENGTH and re.fullmatch(NAME_PATTERN, name) is not None


def read_time(event: Mapping[str, Any]) -> float:
    """The event's time; 0 where it has none."""
    seconds = event.get("time")
    # Up to the year 5138: what is not a moment at all is none of ours.
    return float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e11 else 0.0


def read_count(value: object) -> int:
    """A number that was counted up to; 0 for what was not."""
    return value if isinstance(value, int) and 0 <= value <= MAX_INT32 else 0
