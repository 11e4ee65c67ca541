"""`make down`: ends exactly what `make up` started, also after a crash or a reboot. Data stays."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from infra.local.home import RAY, ROOT, SERVICE, STORAGE, Busy, Home
from infra.local.processes import end, family
from infra.local.state import State, read_state, write_state

# The service gives its leases back, workers of Ray save where they are, and the store, which both
# need for that, ends last.
PATIENCE_S = {SERVICE: 20.0, RAY: 5.0, STORAGE: 15.0}
ROUNDS = 5
"""What is starting brings forth others while those that were seen are ended."""


def down(home: Home) -> list[str]:
    """Ends all parts, the last one first, and gives the names of those that ran."""
    state = read_state(home.state)
    if state is None:
        return []
    ended = []
    for name in PATIENCE_S:
        state, ran = end_part(state, name)
        write_state(home.state, state)
        if ran:
            ended.append(name)
    write_state(home.state, without_scratch(state))
    return ended


def end_parts(state: State, names: Iterable[str]) -> State:
    """Ends these parts, in this order, and gives what is left."""
    for name in names:
        state, _ = end_part(state, name)
    return state


def end_part(state: State, name: str) -> tuple[State, bool]:
    """Ends a part with all that it started; whether there was anything."""
    leaders = [state.parts[name]] if name in state.parts else []
    ran = False
    for _ in range(ROUNDS):
        processes = family(f"{state.mark}-{name}", leaders)
        if not processes:
            break
        end(processes, patience_s=PATIENCE_S[name])
        ran = True
    return state.with_part(name, None), ran


def without_scratch(state: State) -> State:
    """Removes Ray's folder."""
    if state.scratch is not None:
        shutil.rmtree(state.scratch, ignore_errors=True)
    return replace(state, scratch=None)


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 nothing of it runs any more, 3 others are at work here."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.down", description=__doc__)
    parser.add_argument("--state", type=Path, default=ROOT / ".cache/up", help="default: .cache/up")
    home = Home(parser.parse_args(arguments).state.resolve())
    if not home.folder.is_dir():
        print(f"nothing was ever up in {home.folder}")
        return 0
    try:
        with home.alone():
            ended = down(home)
    except Busy as wrong:
        print(wrong, file=sys.stderr)
        return 3
    print(f"ended: {', '.join(ended)}" if ended else "nothing was up")
    return 0


if __name__ == "__main__":
    sys.exit(main())
