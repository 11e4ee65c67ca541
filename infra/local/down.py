"""`make down`: stop what `make up` started, even after a crash or a reboot. Data stays."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from infra.local.paths import RAY, ROOT, SERVICE, SERVING, STORAGE, StackBusy, StackPaths
from infra.local.processes import find_processes, stop_processes
from infra.local.state import StackState, read_state, write_state

# The service releases its leases and the workers of Ray save a checkpoint. Both need the store for
# that, so it stops last.
STOP_TIMEOUT_S = {SERVING: 20.0, SERVICE: 20.0, RAY: 5.0, STORAGE: 15.0}
MAX_ROUNDS = 5
"""A component that is still starting may spawn processes while others are stopped."""


def stop_stack(paths: StackPaths) -> list[str]:
    """Stop all components, and return the names of those that were running."""
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
    """Stop these components, in this order, and return the new state."""
    for name in names:
        state, _ = stop_component(state, name)
    return state


def stop_component(state: StackState, name: str) -> tuple[StackState, bool]:
    """Stop a component and all its processes. Return whether there were any."""
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
    """Remove the temporary folder of Ray."""
    if state.scratch is not None:
        shutil.rmtree(state.scratch, ignore_errors=True)
    return replace(state, scratch=None)


def main(arguments: list[str] | None = None) -> int:
    """Exit with 0 once nothing is running, and with 3 if the stack is locked."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.down", description=__doc__)
    parser.add_argument("--state", type=Path, default=ROOT / ".cache/up", help="default: .cache/up")
    paths = StackPaths(parser.parse_args(arguments).state.resolve())
    if not paths.folder.is_dir():
        print(f"there is no stack in {paths.folder}")
        return 0
    try:
        with paths.lock():
            stopped = stop_stack(paths)
    except StackBusy as error:
        print(error, file=sys.stderr)
        return 3
    print(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")
    return 0


if __name__ == "__main__":
    sys.exit(main())
