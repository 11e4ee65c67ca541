"""`make down`: ends exactly what `make up` started, also after a crash or a reboot. Data stays."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from infra.local.paths import RAY, ROOT, SERVICE, STORAGE, StackBusy, StackPaths
from infra.local.processes import find_processes, stop_processes
from infra.local.state import StackState, read_state, write_state

# The service gives its leases back, workers of Ray save where they are, and the store, which both
# need for that, ends last.
STOP_TIMEOUT_S = {SERVICE: 20.0, RAY: 5.0, STORAGE: 15.0}
MAX_ROUNDS = 5
"""What is starting brings forth others while those that were seen are ended."""


def stop_stack(paths: StackPaths) -> list[str]:
    """Ends all parts, the last one first, and gives the names of those that ran."""
    state = read_state(paths.state)
    if state is None:
        return []
    stopped = []
    for name in STOP_TIMEOUT_S:
        state, was_running = stop_component(state, name)
        write_state(paths.state, state)
        if was_running:
            stopped.append(name)
    write_state(paths.state, remove_scratch(state))
    return stopped


def stop_components(state: StackState, names: Iterable[str]) -> StackState:
    """Ends these parts, in this order, and gives what is left."""
    for name in names:
        state, _ = stop_component(state, name)
    return state


def stop_component(state: StackState, name: str) -> tuple[StackState, bool]:
    """Ends a part with all that it started; whether there was anything."""
    leaders = [state.components[name]] if name in state.components else []
    was_running = False
    for _ in range(MAX_ROUNDS):
        processes = find_processes(f"{state.mark}-{name}", leaders)
        if not processes:
            break
        stop_processes(processes, timeout_s=STOP_TIMEOUT_S[name])
        was_running = True
    return state.with_component(name, None), was_running


def remove_scratch(state: StackState) -> StackState:
    """Removes Ray's folder."""
    if state.scratch is not None:
        shutil.rmtree(state.scratch, ignore_errors=True)
    return replace(state, scratch=None)


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 nothing of it runs any more, 3 others are at work here."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.down", description=__doc__)
    parser.add_argument("--state", type=Path, default=ROOT / ".cache/up", help="default: .cache/up")
    paths = StackPaths(parser.parse_args(arguments).state.resolve())
    if not paths.folder.is_dir():
        print(f"nothing was ever up in {paths.folder}")
        return 0
    try:
        with paths.lock():
            stopped = stop_stack(paths)
    except StackBusy as error:
        print(error, file=sys.stderr)
        return 3
    print(f"ended: {', '.join(stopped)}" if stopped else "nothing was up")
    return 0


if __name__ == "__main__":
    sys.exit(main())
