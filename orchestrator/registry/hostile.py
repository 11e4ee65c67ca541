"""Values that strangers may have written, read so that nothing of them surprises a database."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jobs.spec import NAME_PATTERN
from jobs.spec_file import MOST_BYTES, plain_values
from jobs.store.runs import LONGEST_RUN

MENDED = "Mend or remove it, then rebuild again."
LARGEST = 2**31 - 1


def mapping(text: bytes) -> Mapping[str, Any]:
    """The YAML in `text`, or ValueError, or one of PyYAML's own errors."""
    if len(text) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES} bytes")
    found = plain_values(text.decode())
    if not isinstance(found, dict):
        raise ValueError("not a mapping")
    return found


def is_run(name: str) -> bool:
    """Whether a run may be called so."""
    return len(name) <= LONGEST_RUN and re.fullmatch(NAME_PATTERN, name) is not None


def moment(event: Mapping[str, Any]) -> float:
    """The event's time; 0 where it has none."""
    found = event.get("time")
    # Up to the year 5138: what is not a moment at all is none of ours.
    return float(found) if isinstance(found, int | float) and 0 <= found < 1e11 else 0.0


def counted(value: object) -> int:
    """A number that was counted up to; 0 for what was not."""
    return value if isinstance(value, int) and 0 <= value <= LARGEST else 0
