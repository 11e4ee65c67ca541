"""`python -m tests.benchmarks.start_up [--part PART ...] [--warm] [--rounds N] [--json]`.

Parts: `commands` (how long the command line takes to answer), `cold` (`slora train` of the demo,
no Ray running), `idle` (the demo through a service, on a Ray that runs and has run nothing). With
`--warm` a second run follows the first on the same Ray, and borrows what that left.

The phases of the starts are printed side by side, medians over the rounds. Exit code 1 if they do
not sum to the wait within 2 %, or a target is missed. The targets hold on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

from jobs.train.monitor.phases import PHASES
from tests.benchmarks.start_up.commands import (
    list_slow_commands,
    measure_commands,
    show_commands,
)
from tests.benchmarks.start_up.starts import MeasuredStart, measure_cold, measure_service

PARTS = ("commands", "cold", "idle")
ROUNDS = 3
FIRST_STEP_LIMITS_S = {"cold": 15.0, "idle": 8.0, "warm": 3.0}
"""Seconds until the first step begins, after the command or the submission."""
END_LIMIT_S = 2.0
"""Seconds from the published adapter to the prompt, of `slora train`."""
MAX_DEVIATION = 0.02


def main() -> int:
    """Return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all of them")
    parser.add_argument("--warm", action="store_true", help="a second run on the same Ray, too")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    parts = options.part or PARTS
    commands = measure_commands() if "commands" in parts else {}
    starts = _measure_starts(parts, options.rounds, warm=options.warm)
    faults = list_slow_commands(commands) if commands else []
    faults += [fault for name, runs in starts.items() for fault in _find_faults(name, runs)]
    if options.json:
        values = {name: [_dump(run) for run in runs] for name, runs in starts.items()}
        print(json.dumps({"commands": commands, "starts": values, "faults": faults}))
        return int(bool(faults))
    show_commands(commands)
    if starts:
        _show_starts(starts)
    for fault in faults:
        print(f"missed: {fault}")
    return int(bool(faults))


def _measure_starts(parts: Any, rounds: int, *, warm: bool) -> dict[str, list[MeasuredStart]]:
    starts = dict[str, list[MeasuredStart]]()
    for _ in range(rounds):
        if "cold" in parts:
            starts.setdefault("cold", []).append(measure_cold())
        if "idle" in parts:
            idle, *others = measure_service(2 if warm else 1)
            starts.setdefault("idle", []).append(idle)
            if others:
                starts.setdefault("warm", []).extend(others)
    return starts


def _find_faults(name: str, runs: list[MeasuredStart]) -> list[str]:
    first_step, limit = _median(runs, lambda run: run.first_step_s), FIRST_STEP_LIMITS_S[name]
    faults = [
        f"{name}: the phases sum to {sum(run.phases.values()):.2f} of {run.wait_s:.2f} s"
        for run in runs
        if run.deviation > MAX_DEVIATION
    ]
    if first_step > limit:
        faults.append(f"{name}: first step after {first_step:.1f} s (limit {limit:.0f})")
    ends = [run.end_s for run in runs if run.end_s is not None]
    if ends and statistics.median(ends) > END_LIMIT_S:
        end = f"prompt {statistics.median(ends):.1f} s after the adapter"
        faults.append(f"{name}: {end} (limit {END_LIMIT_S:.0f})")
    return faults


def _show_starts(starts: dict[str, list[MeasuredStart]]) -> None:
    print(f"{'seconds, medians':20}" + "".join(f"{name:>10}" for name in starts))
    for phase in PHASES:
        _show_line(phase, starts, lambda run, phase=phase: run.phases.get(phase, 0.0))
    _show_line("wait", starts, lambda run: run.wait_s)
    _show_line("first step begins", starts, lambda run: run.first_step_s)
    _show_line("adapter to prompt", starts, lambda run: run.end_s)
    limits = "".join(f"{FIRST_STEP_LIMITS_S[name]:10.0f}" for name in starts)
    print(f"{'limit':20}{limits}")


def _show_line(
    label: str,
    starts: dict[str, list[MeasuredStart]],
    read: Callable[[MeasuredStart], float | None],
) -> None:
    cells = []
    for runs in starts.values():
        values = [value for run in runs if (value := read(run)) is not None]
        cells.append(f"{statistics.median(values):10.2f}" if values else f"{'':10}")
    print(f"{label:20}{''.join(cells)}")


def _median(runs: list[MeasuredStart], read: Callable[[MeasuredStart], float]) -> float:
    return statistics.median(map(read, runs))


def _dump(run: MeasuredStart) -> dict[str, Any]:
    values = {"wait_s": run.wait_s, "first_step_s": run.first_step_s, "end_s": run.end_s}
    return {**values, "deviation": run.deviation, "phases": dict(run.phases)}


if __name__ == "__main__":
    sys.exit(main())
