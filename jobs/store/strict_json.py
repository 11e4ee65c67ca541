"""Parse untrusted JSON: reject duplicate names, NaN, and nesting that exhausts the stack."""

from __future__ import annotations

import json
from typing import Any, Never


def load_strictly(data: bytes) -> Any:
    """Return the value in `data`, or raise ValueError."""
    try:
        return json.loads(
            data.decode(), object_pairs_hook=_reject_duplicates, parse_constant=_reject_constant
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _reject_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    # The parsers that read it afterwards keep the last of two values, others the first.
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _reject_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")
