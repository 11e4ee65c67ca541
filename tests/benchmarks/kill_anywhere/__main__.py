"""`python -m tests.benchmarks.kill_anywhere [--rounds N] [--json]`: kills, and what was lost.

Every round runs a tiny fine-tune (40 steps, a checkpoint every 5) on a real Ray, kills a worker,
the controller, the job's driver or all of the host's Ray with SIGKILL at a random moment, lets the
run go on (after a driver or a host, sometimes with another number of workers), and compares it with
one that nobody killed, without Ray: the same bits at the same number of workers, the final loss
within 1e-4 at another; no more steps repeated than lie between two checkpoints; one committed
version; no process left. Exit code 1 where any round is not so.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from tests.benchmarks.kill_anywhere.rounds import VICTIMS, Round, killed, prepare, uninterrupted
from tests.ray_head import Head, ray_head


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when nothing was lost in any round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="slora-kills-") as made:
        found = _rounds(Path(made), asked.rounds, asked.victims, random.Random(asked.seed))
    if asked.json:
        print(json.dumps([one.plain() for one in found]))
    else:
        _show(found)
    return 0 if all(one.good for one in found) else 1


class _Heads:
    """A Ray that is up: the one there is, or a new one after it was killed."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack, self._count = folder, stack, 0
        self._head: Head | None = None

    def __call__(self) -> Head:
        if self._head is None or not self._head.process.is_running() or self._dead():
            self._count += 1
            self._head = self._stack.enter_context(ray_head(self._folder / f"ray{self._count}"))
        return self._head

    def _dead(self) -> bool:
        assert self._head is not None
        return self._head.process.status() == "zombie"


def _rounds(folder: Path, rounds: int, victims: list[str], chance: random.Random) -> list[Round]:
    spec, found = prepare(folder), list[Round]()
    with ExitStack() as stack:
        heads = _Heads(folder, stack)
        whole = cache(lambda workers: uninterrupted(spec, folder, workers))
        for number in range(rounds):
            victim = victims[number % len(victims)]
            one = killed(
                heads, spec, folder, name=f"kill{number}", victim=victim, whole=whole, chance=chance
            )
            found.append(one)
            print(f"{number + 1}/{rounds} {_line(one)}", file=sys.stderr, flush=True)
    return found


def _line(one: Round) -> str:
    before, after = one.workers
    same = "same bits" if one.bit_equal else f"loss differs by {one.difference:.1e}"
    moved = "" if before == after else f", {before} -> {after} workers"
    return (
        f"{one.victim} killed at step {one.at_step}{moved}: {same}, {one.repeated} steps repeated, "
        f"{one.left_behind} processes left: {'good' if one.good else 'NOT GOOD'}"
    )


def _show(found: Sequence[Round]) -> None:
    counted = Counter(one.victim for one in found)
    good = sum(one.good for one in found)
    equal = sum(one.bit_equal for one in found)
    told = ", ".join(f"{count} x {victim}" for victim, count in counted.items())
    print(f"{good} of {len(found)} rounds lost nothing ({told})")
    print(f"{equal} came to the same bits, {len(found) - equal} went on with other workers")
    print(f"most steps repeated: {max((one.repeated for one in found), default=0)}")


if __name__ == "__main__":
    sys.exit(main())
