"""Measure what it costs to refuse hostile specs, in seconds of CPU.

    python -m tests.benchmarks.error_reporting [--json]

The exit code is 1 if one of them takes longer than MAX_CPU_S.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobs.errors import InputError
from jobs.spec.load import parse_spec, validate_spec

MAX_CPU_S = 0.2
KEYS = 100_000
ALLOWED_KEYS = 9900
"""Keys that a spec may just have, so that each of them is looked at."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all cases and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    validate_spec(make_values())
    figures = {name: measure_cpu(refuse) for name, refuse in list_cases().items()}
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, seconds in figures.items():
            print(f"{name:32} {seconds:.3f} s")
    return int(max(figures.values()) > MAX_CPU_S)


def list_cases() -> Mapping[str, Callable[[], object]]:
    """Return what is refused, by name."""
    many, allowed = make_unknown(KEYS), make_unknown(ALLOWED_KEYS)
    rate = "train.learning_rate"
    specs: dict[str, dict[str, Any]] = {
        "100,000 unknown keys": many,
        "100,000 unknown keys of train": {"train": {"steps": 10, **many}},
        "9,900 unknown keys": allowed,
        "9,900 unknown keys of train": {"train": {"steps": 10, **allowed}},
        "9,900 unknown keys of a domain": {"search": {"space": {rate: allowed}}},
        "9,900 wrong domains": {"search": {"space": allowed}},
        "400 unknown keys of a space": {
            "search": {"space": {name: {"choice": [1, 2]} for name in make_unknown(400)}}
        },
        "9,900 values of a choice": {"search": {"space": {rate: {"choice": [*range(9900)]}}}},
        "900 wrong values of a choice": {
            "search": {"space": {rate: {"choice": [*make_unknown(900)]}}}
        },
        "a key of 900,000 characters": {"x" * 900_000: 1},
        "a value of 900,000 characters": {"name": "x" * 900_000},
    }
    cases: dict[str, Callable[[], object]] = {
        name: lambda changes=changes: validate_spec(make_values(**changes))
        for name, changes in specs.items()
    }
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    return {**cases, "aliases for 10^30 values": lambda: parse_spec("\n".join(bomb))}


def measure_cpu(refuse: Callable[[], object]) -> float:
    """Return the CPU seconds of refusing a spec and formatting its faults."""
    started_at = time.process_time()
    try:
        refuse()
    except InputError as error:
        str(error)
    else:
        raise AssertionError("the spec was accepted")
    return round(time.process_time() - started_at, 4)


def make_unknown(count: int) -> dict[str, Any]:
    """Make keys that no section has."""
    return {f"key{number}": 1 for number in range(count)}


def make_values(**changes: Any) -> dict[str, Any]:
    """Make a small spec as plain values."""
    return {
        "name": "chat",
        "model": {"path": "/models/tiny"},
        "data": {"train": "/data/train.jsonl", "eval": "/data/eval.jsonl"},
        "train": {"steps": 10},
        "store": "file:///store",
        **changes,
    }


if __name__ == "__main__":
    sys.exit(main())
