"""JSON from strangers: no name twice, no NaN, no depth that ends the process."""

from __future__ import annotations

import json
from typing import Any, Never


def load_strictly(data: bytes) -> Any:
    """The value written in `data`, or ValueError."""
    try:
        return json.loads(
            data.decode(), object_pairs_hook=_reject_duplicates, parse_constant=_reject_constant
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _reject_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    # The parsers we hand over to let the last of two win, others the first.
    if len(result) != len(pairs):
        raise ValueError("a name is written twice")
    return result


def _reject_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")
