"""Read values that anybody may have written, such that a database accepts them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jobs.spec.limits import MAX_INT32, NAME_PATTERN
from jobs.store.runs.run_store import MAX_RUN_ID_LENGTH

FIX_HINT = "Fix or remove it, then rebuild again."


def is_run_id(name: str) -> bool:
    """Return whether a name is a valid run id."""
    return len(name) <= MAX_RUN_ID_LENGTH and re.fullmatch(NAME_PATTERN, name) is not None


def read_time(event: Mapping[str, Any]) -> float:
    """Return the time of an event; 0 if it has none."""
    seconds = event.get("time")
    # The limit is the year 5138; larger numbers are no times.
    return float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e11 else 0.0


def read_count(value: object) -> int:
    """Return a non-negative 32-bit integer; 0 if the value is none."""
    return value if isinstance(value, int) and 0 <= value <= MAX_INT32 else 0
