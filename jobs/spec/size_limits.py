"""Bound the size of a spec before anything else looks at it, and the number of its faults.

A file of a few lines can hold millions of values through aliases, and a body of 1 MiB can hold
100,000 unknown keys. Reporting such a spec must not cost more than reading it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.errors import Fault, InputError

MAX_VALUES = 10_000
"""Keys and values of a spec; a large one has some hundreds."""
MAX_DEPTH = 50
MAX_FAULTS = 100
MAX_KEY_CHARS = 200


def check_size(values: Any, source: str = "spec") -> None:
    """Raise InputError if plain values hold too many others, or are nested too deeply.

    A value is counted wherever it is used, so that an alias of YAML costs what it stands for.
    """
    stack, count = [(values, 1)], 0
    while stack:
        value, depth = stack.pop()
        count += len(value)
        if count > MAX_VALUES:
            problem = f"it holds more than {MAX_VALUES:,} keys and values"
            raise InputError([Fault(source, problem, "Use fewer; aliases count where they stand.")])
        if depth > MAX_DEPTH:
            problem = f"it is nested more than {MAX_DEPTH} levels deep"
            raise InputError([Fault(source, problem, "See jobs/examples for the keys of a spec.")])
        inner = value.values() if isinstance(value, Mapping) else value
        stack.extend(
            (child, depth + 1) for child in inner if isinstance(child, dict | list | tuple)
        )


def cap_faults(faults: Iterable[Fault]) -> Sequence[Fault]:
    """Return the first fault of each key, at most MAX_FAULTS, and how many more there are."""
    by_key = dict[str, Fault]()
    for fault in faults:
        by_key.setdefault(fault.key, fault)
    distinct = list(by_key.values())
    hidden = len(distinct) - MAX_FAULTS
    if hidden <= 0:
        return distinct
    more = Fault("spec", f"{hidden:,} more errors are not listed", "Fix these first.")
    return [*distinct[:MAX_FAULTS], more]


def shorten_key(key: str) -> str:
    """Return a key that is short enough to be shown."""
    return key if len(key) <= MAX_KEY_CHARS else f"{key[: MAX_KEY_CHARS - 1]}…"
